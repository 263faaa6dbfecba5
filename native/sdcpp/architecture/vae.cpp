#include "sdcpp/architecture/vae.h"

#include <numeric>

#include "sdcpp/architecture/checkpoint.h"

namespace sdcpp {

using namespace checkpoint;

void architecture_vae(const String2TensorStorage& file, const std::string& prefix, const std::string& half,
                      VaeSizes sizes) {
    const bool decoder = half == "decoder";
    const std::string levels = prefix + "." + half + (decoder ? ".up." : ".down.");
    const int found = count(file, levels, ".block.0.conv1.weight", max_layers);
    if (found == 0) {
        return;
    }
    // A picture is 8 times its latent all over the engine: three of four levels halve it.
    if (found != static_cast<int>(sizes.ch_mult.size())) {
        fail("tensor '%s%d.block.0.conv1.weight' is the autoencoder's last level: it must have %zu levels, not %d",
             levels.c_str(), found - 1, sizes.ch_mult.size(), found);
    }
    std::vector<int64_t> widths;
    for (int i = 0; i < found; ++i) {
        widths.push_back(group_width(file, levels + std::to_string(i) + ".block.0.conv1.weight", 3, 0));
    }
    int64_t channels = 0;
    if (decoder) {
        for (const int64_t width : widths) {
            channels = std::gcd(channels, width);
        }
    } else {
        channels = group_width(file, prefix + ".encoder.conv_in.weight", 3, sizes.ch);
    }
    sizes.ch = static_cast<int>(channels);
    for (int i = 0; i < found; ++i) {
        require_multiple(file, levels + std::to_string(i) + ".block.0.conv1.weight", widths[i], channels,
                         "the channels of the first layer");
        sizes.ch_mult[i] = static_cast<int>(widths[i] / channels);
    }
    sizes.num_res_blocks = count(file, levels + "0.block.", ".conv1.weight", max_res_blocks + 1) - (decoder ? 1 : 0);
}

}  // namespace sdcpp
