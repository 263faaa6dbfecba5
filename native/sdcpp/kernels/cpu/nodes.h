// The kinds of nodes that we compute. What none of them takes, ggml computes.
#pragma once

#include <cstddef>
#include <cstdint>

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

// Tells whether a tensor's rows are of floats that lie side by side.
inline bool is_f32(const ggml_tensor& tensor) {
    return tensor.type == GGML_TYPE_F32 && tensor.nb[0] == sizeof(float);
}

// Tells whether floats can be made of a tensor's rows.
inline bool is_readable(const ggml_tensor& tensor) {
    return tensor.nb[0] == ggml_type_size(tensor.type) &&
           (tensor.type == GGML_TYPE_F32 || ggml_get_type_traits(tensor.type)->to_float != nullptr);
}

// Products with fewer columns cost more to pack than to compute.
constexpr int64_t worthy_columns = 6;

// Returns the row of a tensor that belongs to one of a node's: it has as many, or is repeated.
inline float* row_at(const ggml_tensor& tensor, const ggml_tensor& node, int64_t row) {
    const int64_t i1 = row % node.ne[1];
    const int64_t i2 = row / node.ne[1] % node.ne[2];
    const int64_t i3 = row / (node.ne[1] * node.ne[2]);
    return reinterpret_cast<float*>(static_cast<char*>(tensor.data) + i1 % tensor.ne[1] * tensor.nb[1] +
                                    i2 % tensor.ne[2] * tensor.nb[2] + i3 % tensor.ne[3] * tensor.nb[3]);
}

// The work size of what needs no memory.
inline size_t no_work(const ggml_tensor&, int) {
    return 0;
}

// GGML_OP_MUL_MAT: each row of the weights times each column of the input.
extern const Kernel matrix_product;
// GGML_OP_MUL_MAT with fewer columns.
extern const Kernel few_columns;
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
// GGML_OP_ROPE by matrices of floats, [2, 2, d / 2, tokens], in place of positions, as graph.cpp makes them: of values
// [d, heads, tokens, n] it makes [d, tokens, heads * n].
extern const Kernel rotation;
// GGML_OP_UNARY of GELU, by tanh and by a sigmoid.
extern const Kernel gelu_values;

}  // namespace sdcpp::cpu
