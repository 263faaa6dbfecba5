#include "sdcpp/architecture/esrgan.h"

#include <algorithm>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "sdcpp/architecture/checkpoint.h"

namespace sdcpp {

using namespace checkpoint;

namespace {

using Renaming = std::vector<std::pair<std::regex, std::string>>;

constexpr int colours = 3;

// The numbers of the layers behind the blocks, of "model.3.weight" and the like, in order.
std::vector<int> later_layers(const String2TensorStorage& file) {
    std::set<int> found;
    const std::regex layer("model\\.([1-9][0-9]?)\\.weight");
    for (const auto& [name, tensor] : file) {
        std::smatch match;
        if (std::regex_match(name, match, layer)) {
            found.insert(std::stoi(match[1]));
        }
    }
    return {found.begin(), found.end()};
}

Renaming first_names(const String2TensorStorage& file) {
    Renaming names = {
        {std::regex("model\\.0\\.(.*)"), "conv_first.$1"},
        {std::regex("model\\.1\\.sub\\.(\\d+)\\.RDB([123])\\.conv([1-5])\\.0\\.(.*)"), "body.$1.rdb$2.conv$3.$4"},
        {std::regex("model\\.1\\.sub\\.\\d+\\.(weight|bias)"), "conv_body.$1"},
    };
    const std::vector<int> layers = later_layers(file);
    for (size_t i = 0; i < layers.size(); ++i) {
        const size_t left = layers.size() - i;
        const std::string name = left == 1 ? "conv_last" : left == 2 ? "conv_hr" : "conv_up" + std::to_string(i + 1);
        names.emplace_back("model\\." + std::to_string(layers[i]) + "\\.(.*)", name + ".$1");
    }
    return names;
}

Renaming trunk_names() {
    return {
        {std::regex("RRDB_trunk\\.(\\d+)\\.RDB([123])\\.conv([1-5])\\.(.*)"), "body.$1.rdb$2.conv$3.$4"},
        {std::regex("trunk_conv\\.(.*)"), "conv_body.$1"},
        {std::regex("upconv(\\d)\\.(.*)"), "conv_up$1.$2"},
        {std::regex("HRconv\\.(.*)"), "conv_hr.$1"},
    };
}

}  // namespace

void architecture_esrgan_names(String2TensorStorage& file) {
    const Renaming names = has(file, "model.0.weight") ? first_names(file) : trunk_names();
    String2TensorStorage renamed;
    for (auto [name, tensor] : file) {
        for (const auto& [from, to] : names) {
            if (std::regex_match(name, from)) {
                tensor.name = std::regex_replace(name, from, to);
                break;
            }
        }
        renamed[tensor.name] = tensor;
    }
    file = std::move(renamed);
    if (has(file, "conv_up3.weight")) {
        fail("tensor 'conv_up3.weight' makes pictures more than 4 times larger, which the engine does not know");
    }
}

void architecture_esrgan(const String2TensorStorage& file, EsrganSizes sizes) {
    const std::string first = "conv_first.weight";
    const int64_t taken = axis(file, first, 2, sizes.channels);
    const int folds = taken == colours ? 1 : taken == 4 * colours ? 2 : taken == 16 * colours ? 4 : 0;
    if (folds == 0) {
        fail("tensor '%s' takes %lld channels; the engine knows upscalers of RGB pictures, which take 3, 12 or 48",
             first.c_str(), static_cast<long long>(taken));
    }
    sizes.blocks = static_cast<int>(layers(file, "body.", sizes.blocks));
    const int64_t width = axis(file, first, 3, sizes.width);
    const int64_t growth = axis(file, "body.0.rdb1.conv1.weight", 3, sizes.growth);
    if (std::max(width, growth) > max_width) {
        fail("tensor '%s' is wider than any upscaler", first.c_str());
    }
    sizes.folds = folds;
    sizes.channels = static_cast<int>(taken);
    sizes.width = static_cast<int>(width);
    sizes.growth = static_cast<int>(growth);
}

sd::Tensor<float> folded(const sd::Tensor<float>& image, int folds) {
    const int64_t width = image.shape()[0];
    const int64_t height = image.shape()[1];
    const int64_t channels = image.shape()[2];
    if (folds == 1) {
        return image;
    }
    if (width % folds != 0 || height % folds != 0) {
        throw std::runtime_error("the upscaler needs sides that are multiples of " + std::to_string(folds));
    }
    sd::Tensor<float> out({width / folds, height / folds, channels * folds * folds, 1});
    float* to = out.data();
    for (int64_t channel = 0; channel < channels; ++channel) {
        for (int64_t square = 0; square < int64_t{folds} * folds; ++square) {
            const float* from = image.data() + channel * width * height + square / folds * width + square % folds;
            for (int64_t y = 0; y < height / folds; ++y) {
                for (int64_t x = 0; x < width / folds; ++x) {
                    *to++ = from[y * folds * width + x * folds];
                }
            }
        }
    }
    return out;
}

}  // namespace sdcpp
