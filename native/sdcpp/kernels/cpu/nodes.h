// The kinds of nodes that we compute. What none of them takes, ggml computes.
#pragma once

#include <cstddef>

#include "ggml-cpu/ggml-cpu-impl.h"

namespace sdcpp::cpu {

struct Kernel {
    // Tells whether a node is one of these, and faster here.
    bool (*takes)(const ggml_tensor& node);
    // Computes this thread's part of it.
    void (*compute)(const ggml_compute_params& params, const ggml_tensor& node);
    // Returns the bytes of the work buffer that it takes with so many threads.
    size_t (*work_size)(const ggml_tensor& node, int threads);
};

// GGML_OP_MUL_MAT: each row of the weights times each column of the input.
extern const Kernel matrix_product;
// GGML_OP_FLASH_ATTN_EXT without a mask, or with one of f32, as graph.cpp makes them.
extern const Kernel attention;
// GGML_OP_CONV_2D of 3x3 filters, where the picture is large enough.
extern const Kernel winograd;
// GGML_OP_CONV_2D of any other.
extern const Kernel convolution;
// GGML_OP_GROUP_NORM, with what ../group_norm_params.h adds to it.
extern const Kernel group_norm;
// GGML_OP_ADD and GGML_OP_MUL of numbers that are each for whole rows, such as a channel's.
extern const Kernel row_arithmetic;
// GGML_OP_UNARY of GELU, by tanh and by a sigmoid.
extern const Kernel gelu_values;

}  // namespace sdcpp::cpu
