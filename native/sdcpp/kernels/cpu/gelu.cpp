#include <algorithm>
#include <cmath>

#include "ggml-cpu/vec.h"
#include "ggml-impl.h"
#include "sdcpp/kernels/cpu/nodes.h"

namespace sdcpp::cpu {

namespace {

// What is computed at a time is still in the smallest cache when it is read again.
constexpr int most_values = 1024;
// Beyond this GELU is its argument, or nothing.
constexpr float linear = 10.0f;
constexpr float cube = 0.044715f;
constexpr float slope = 2.0f * 0.79788456f;  // 2 sqrt(2 / pi)
constexpr float quick_slope = 1.702f;

// ggml looks each value up in a table of halves.
bool takes(const ggml_tensor& node) {
    if (node.op != GGML_OP_UNARY || !is_f32(node) || !is_f32(*node.src[0])) {
        return false;
    }
    const ggml_unary_op op = ggml_get_unary_op(&node);
    return op == GGML_UNARY_OP_GELU || op == GGML_UNARY_OP_GELU_QUICK;
}

// x sigmoid(s), with SiLU and what x is of s: x / s SiLU(s).
void gelu(float* to, const float* from, int count) {
    float inner[most_values];
    float share[most_values];
    for (int i = 0; i < count; ++i) {
        const float x = std::min(std::max(from[i], -linear), linear);
        const float factor = slope * (1.0f + cube * x * x);
        inner[i] = x * factor;
        share[i] = 1.0f / factor;
    }
    ggml_vec_swiglu_f32(count, inner, inner, share);
    for (int i = 0; i < count; ++i) {
        const float x = from[i];
        to[i] = x >= linear ? x : x <= -linear ? 0.0f : inner[i];
    }
}

void gelu_quick(float* to, const float* from, int count) {
    float inner[most_values];
    for (int i = 0; i < count; ++i) {
        inner[i] = quick_slope * from[i];
    }
    ggml_vec_silu_f32(count, inner, inner);
    for (int i = 0; i < count; ++i) {
        to[i] = inner[i] * (1.0f / quick_slope);
    }
}

void compute(const ggml_compute_params& params, const ggml_tensor& node) {
    const ggml_tensor& source = *node.src[0];
    const bool quick = ggml_get_unary_op(&node) == GGML_UNARY_OP_GELU_QUICK;
    const int64_t rows = ggml_nrows(&node);
    const int64_t end = rows * (params.ith + 1) / params.nth;
    for (int64_t row = rows * params.ith / params.nth; row < end; ++row) {
        float* const to = row_at(node, node, row);
        const float* const from = row_at(source, node, row);
        for (int64_t i = 0; i < node.ne[0]; i += most_values) {
            const auto count = static_cast<int>(std::min<int64_t>(most_values, node.ne[0] - i));
            (quick ? gelu_quick : gelu)(to + i, from + i, count);
        }
    }
}

}  // namespace

const Kernel gelu_values = {takes, compute, no_work};

}  // namespace sdcpp::cpu
