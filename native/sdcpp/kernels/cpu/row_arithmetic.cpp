#include <algorithm>

#include "sdcpp/kernels/cpu/nodes.h"

namespace sdcpp::cpu {

namespace {

// ggml goes through such a row in steps of one number.
bool takes(const ggml_tensor& node) {
    return (node.op == GGML_OP_ADD || node.op == GGML_OP_MUL) && is_f32(node) && is_f32(*node.src[0]) &&
           is_f32(*node.src[1]) && node.src[1]->ne[0] == 1 && node.ne[0] > 1 && ggml_are_same_shape(&node, node.src[0]);
}

void compute(const ggml_compute_params& params, const ggml_tensor& node) {
    const ggml_tensor& left = *node.src[0];
    const ggml_tensor& right = *node.src[1];
    const int64_t rows = ggml_nrows(&node);
    const int64_t begin = rows * params.ith / params.nth;
    const int64_t end = rows * (params.ith + 1) / params.nth;
    for (int64_t row = begin; row < end; ++row) {
        // The result may lie where the left operand does.
        const float* const from = row_at(left, node, row);
        float* const to = row_at(node, node, row);
        const float number = *row_at(right, node, row);
        if (node.op == GGML_OP_ADD) {
            std::transform(from, from + node.ne[0], to, [number](float value) { return value + number; });
        } else {
            std::transform(from, from + node.ne[0], to, [number](float value) { return value * number; });
        }
    }
}

}  // namespace

const Kernel row_arithmetic = {takes, compute, no_work};

}  // namespace sdcpp::cpu
