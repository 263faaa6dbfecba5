#include <algorithm>

#include "sdcpp/kernels/cpu/nodes.h"

namespace sdcpp::cpu {

namespace {

bool is_f32(const ggml_tensor& tensor) {
    return tensor.type == GGML_TYPE_F32 && tensor.nb[0] == sizeof(float);
}

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
        const int64_t i1 = row % node.ne[1];
        const int64_t i2 = row / node.ne[1] % node.ne[2];
        const int64_t i3 = row / (node.ne[1] * node.ne[2]);
        const auto at = [&](const ggml_tensor& tensor) {
            return reinterpret_cast<float*>(static_cast<char*>(tensor.data) + i1 % tensor.ne[1] * tensor.nb[1] +
                                            i2 % tensor.ne[2] * tensor.nb[2] + i3 % tensor.ne[3] * tensor.nb[3]);
        };
        // The result may lie where the left operand does.
        const float* const from = at(left);
        float* const to = at(node);
        const float number = *at(right);
        if (node.op == GGML_OP_ADD) {
            std::transform(from, from + node.ne[0], to, [number](float value) { return value + number; });
        } else {
            std::transform(from, from + node.ne[0], to, [number](float value) { return value * number; });
        }
    }
}

size_t work_size(const ggml_tensor&, int) {
    return 0;
}

}  // namespace

const Kernel row_arithmetic = {takes, compute, work_size};

}  // namespace sdcpp::cpu
