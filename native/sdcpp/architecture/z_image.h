// Z-Image's transformer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"

namespace sdcpp {

// The sizes of Z-Image's transformer, by reference to the runner's own.
struct ZImageSizes {
    int64_t& hidden_size;
    int64_t& num_layers;
    int64_t& num_refiner_layers;
    int64_t& head_dim;
    int64_t& num_heads;
    int64_t& num_kv_heads;
    int64_t& multiple_of;
    float& ffn_dim_multiplier;
    int64_t& cap_feat_dim;
    std::vector<int>& axes_dim;
    int64_t& axes_dim_sum;
};

// Reads the sizes of Z-Image's transformer; a head is as wide as its norm, and the rope's axes share that width.
void architecture_z_image(const String2TensorStorage& file, const std::string& prefix, ZImageSizes sizes);

template <typename Params>
void architecture_z_image(const String2TensorStorage& file, const std::string& prefix, Params& params) {
    architecture_z_image(
        file, prefix,
        ZImageSizes{params.hidden_size, params.num_layers, params.num_refiner_layers, params.head_dim, params.num_heads,
                    params.num_kv_heads, params.multiple_of, params.ffn_dim_multiplier, params.cap_feat_dim,
                    params.axes_dim, params.axes_dim_sum});
}

}  // namespace sdcpp
