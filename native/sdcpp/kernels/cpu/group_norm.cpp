#include <algorithm>
#include <cmath>

#include "ggml-cpu/vec.h"
#include "ggml-impl.h"
#include "sdcpp/kernels/cpu/nodes.h"
#include "sdcpp/kernels/cpu/vectors.h"
#include "sdcpp/kernels/group_norm_params.h"

namespace sdcpp::cpu {

namespace {

// So many vectors are summed as floats before they are added to what doubles sum.
constexpr int summed = 8;
// What is written of a line at a time is still in the smallest cache when SiLU reads it.
constexpr int64_t most_written = 2048;

typedef double Doubles __attribute__((vector_size(lanes * sizeof(double))));

// Returns the sum over a line of what comes of its values, which is made of vectors and of numbers.
template <typename F>
double sum_of(const float* line, int64_t length, F&& value) {
    Doubles sums = {};
    int64_t i = 0;
    for (; i + summed * lanes <= length; i += summed * lanes) {
        Vector some = value(load(line + i));
#pragma GCC unroll 8
        for (int v = 1; v < summed; ++v) {
            some += value(load(line + i + v * lanes));
        }
        sums += __builtin_convertvector(some, Doubles);
    }
    double sum = 0.0;
    for (int lane = 0; lane < lanes; ++lane) {
        sum += sums[lane];
    }
    for (; i < length; ++i) {
        sum += value(line[i]);
    }
    return sum;
}

bool takes(const ggml_tensor& node) {
    return node.op == GGML_OP_GROUP_NORM && is_f32(node) && is_f32(*node.src[0]);
}

// The channels of a group, in lines of values that lie side by side in the picture and in the result.
class Group {
public:
    Group(const ggml_tensor& node, int64_t group, int64_t batch) : node(node), picture(*node.src[0]), batch(batch) {
        const int64_t groups = ggml_get_op_params_i32(&node, 0);
        const int64_t each = (picture.ne[2] + groups - 1) / groups;
        first = std::min(group * each, picture.ne[2]);
        last = std::min(first + each, picture.ne[2]);
        const auto plane = [](const ggml_tensor& tensor) {
            return tensor.nb[1] == static_cast<size_t>(tensor.ne[0]) * sizeof(float);
        };
        const bool whole = plane(picture) && plane(node);
        length = whole ? picture.ne[0] * picture.ne[1] : picture.ne[0];
        lines = whole ? 1 : picture.ne[1];
    }

    void compute() const {
        const double count = static_cast<double>(length * lines * (last - first));
        double sum = 0.0;
        each(
            [&](int64_t, const float* from, float*) { sum += sum_of(from, length, [](auto value) { return value; }); });
        const auto mean = static_cast<float>(sum / count);
        double squares = 0.0;
        each([&](int64_t, const float* from, float*) {
            squares += sum_of(from, length, [mean](auto value) { return (value - mean) * (value - mean); });
        });
        const float scale = 1.0f / std::sqrt(static_cast<float>(squares / count) + ggml_get_op_params_f32(&node, 1));
        const bool silu = ggml_get_op_params_i32(&node, group_norm_silu) != 0;
        const auto* const factors = node.src[1] != nullptr ? static_cast<const float*>(node.src[1]->data) : nullptr;
        const auto* const summands = node.src[2] != nullptr ? static_cast<const float*>(node.src[2]->data) : nullptr;
        each([&](int64_t channel, const float* from, float* to) {
            const float factor = factors != nullptr ? factors[channel] : 1.0f;
            const float summand = summands != nullptr ? summands[channel] : 0.0f;
            for (int64_t i = 0; i < length; i += most_written) {
                const int64_t some = std::min(most_written, length - i);
                std::transform(from + i, from + i + some, to + i,
                               [=](float value) { return (value - mean) * scale * factor + summand; });
                if (silu) {
                    ggml_vec_silu_f32(static_cast<int>(some), to + i, to + i);
                }
            }
        });
    }

private:
    template <typename F>
    void each(F&& compute) const {
        for (int64_t channel = first; channel < last; ++channel) {
            for (int64_t line = 0; line < lines; ++line) {
                const auto at = [&](const ggml_tensor& tensor) {
                    return reinterpret_cast<float*>(static_cast<char*>(tensor.data) + line * tensor.nb[1] +
                                                    channel * tensor.nb[2] + batch * tensor.nb[3]);
                };
                compute(channel, at(picture), at(node));
            }
        }
    }

    const ggml_tensor& node;
    const ggml_tensor& picture;
    const int64_t batch;
    int64_t first;
    int64_t last;
    int64_t length;
    int64_t lines;
};

void compute(const ggml_compute_params& params, const ggml_tensor& node) {
    const int64_t groups = ggml_get_op_params_i32(&node, 0);
    for (int64_t i = params.ith; i < groups * node.ne[3]; i += params.nth) {
        Group(node, i % groups, i / groups).compute();
    }
}

}  // namespace

const Kernel group_norm = {takes, compute, no_work};

}  // namespace sdcpp::cpu
