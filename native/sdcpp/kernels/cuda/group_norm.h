// Group norms, and what they have in common with convolutions, which may norm what they read.
#pragma once

#include "sdcpp/kernels/cuda/nodes.h"

namespace sdcpp::cuda {

// What a group norm makes of a picture's values: (value - mean) * scale * factor + summand, and SiLU of it.
struct Norm {
    const float2* groups = nullptr;  // mean and scale of each group of each picture; NULL: no norm
    const float* factor = nullptr;   // of each channel; NULL: 1
    const float* summand = nullptr;  // likewise; NULL: 0
    uint3 group_channels = {};       // to divide by
    int group_count = 0;             // of a picture
    bool silu = false;
};

// Notes the groups of a picture's norm, and has `groups` hold them.
void make_norm(ggml_backend_cuda_context& context, const ggml_tensor& picture, int group_count, float eps,
               ggml_cuda_pool_alloc<float2>& groups, Norm& norm);

__device__ __forceinline__ float normed(float value, float2 group, float factor, float summand, const Norm& norm) {
    value = __fmul_rn(value - group.x, group.y);
    value = norm.factor != nullptr ? __fmul_rn(value, factor) : value;
    value = norm.summand != nullptr ? __fadd_rn(value, summand) : value;
    return norm.silu ? value / (1.0f + expf(-value)) : value;
}

}  // namespace sdcpp::cuda
