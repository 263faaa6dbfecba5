// Qwen-Image's transformer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"

namespace sdcpp {

// The sizes of Qwen-Image's transformer, by reference to the runner's own.
struct QwenImageSizes {
    int& num_layers;
    int64_t& attention_head_dim;
    int64_t& num_attention_heads;
    int64_t& joint_attention_dim;
    std::vector<int>& axes_dim;
    int& axes_dim_sum;
};

// Reads the sizes of Qwen-Image's transformer; a head is as wide as its norm, and the rope's axes share that width.
void architecture_qwen_image(const String2TensorStorage& file, const std::string& prefix, QwenImageSizes sizes);

template <typename Params>
void architecture_qwen_image(const String2TensorStorage& file, const std::string& prefix, Params& params) {
    architecture_qwen_image(file, prefix,
                            QwenImageSizes{params.num_layers, params.attention_head_dim, params.num_attention_heads,
                                           params.joint_attention_dim, params.axes_dim, params.axes_dim_sum});
}

}  // namespace sdcpp
