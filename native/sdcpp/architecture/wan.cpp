#include "sdcpp/architecture/wan.h"

#include "sdcpp/architecture/checkpoint.h"

namespace sdcpp {

using namespace checkpoint;

void architecture_wan_vae(const String2TensorStorage& file, const std::string& prefix, const std::vector<int>& dim_mult,
                          int64_t& dim, int64_t& dec_dim) {
    // The kernels' two channel axes are merged in the table; the biases have one each.
    dim = axis(file, prefix + ".encoder.conv1.bias", 0, dim);
    const std::string last = prefix + ".decoder.conv1.bias";
    const int64_t width = axis(file, last, 0, dec_dim * dim_mult.back());
    require_multiple(file, last, width, dim_mult.back(), "the multiplier of the last level");
    dec_dim = width / dim_mult.back();
}

}  // namespace sdcpp
