#include <algorithm>

#include "ggml-impl.h"
#include "sdcpp/kernels/cpu/nodes.h"
#include "sdcpp/kernels/cpu/product.h"

namespace sdcpp::cpu {

namespace {

// Of a head so many values are turned at a time.
constexpr int64_t part_values = 256;
// What a thread turns until it looks for the next job.
constexpr int64_t job_bytes = 128 << 10;

bool takes(const ggml_tensor& node) {
    return node.op == GGML_OP_ROPE && node.src[1]->type == GGML_TYPE_F32;
}

// Exchanges the values of each pair.
Vector exchanged(Vector vector) {
#if defined(__AVX512F__)
    return (Vector)_mm512_permute_ps((__m512)vector, 0xb1);
#elif defined(__AVX__)
    return (Vector)_mm256_permute_ps((__m256)vector, 0xb1);
#else
    return __builtin_shufflevector(vector, vector, 1, 0, 3, 2);
#endif
}

// What the values of some pairs become: each its factor times itself and another times the pair's other value.
struct Factors {
    // Of a token's matrices, two rows of two a pair.
    Factors(const float* matrices, int64_t count) {
        for (int64_t i = 0; i < count; i += 2, matrices += 4) {
            own[i] = matrices[0];
            other[i] = matrices[1];
            other[i + 1] = matrices[2];
            own[i + 1] = matrices[3];
        }
    }

    void turn(float* to, const float* from, int64_t count) const {
        int64_t i = 0;
        for (; i + lanes <= count; i += lanes) {
            const Vector values = load(from + i);
            store(to + i, add_product(exchanged(values) * load(other + i), values, load(own + i)));
        }
        for (; i < count; i += 2) {
            const float first = from[i];
            const float second = from[i + 1];
            to[i] = first * own[i] + second * other[i];
            to[i + 1] = second * own[i + 1] + first * other[i + 1];
        }
    }

    float own[part_values];
    float other[part_values];
};

void turn_token(const ggml_tensor& node, int64_t token, int64_t batch) {
    const ggml_tensor& values = *node.src[0];
    const ggml_tensor& matrices = *node.src[1];
    const auto* const from = static_cast<const char*>(values.data) + token * values.nb[2] + batch * values.nb[3];
    auto* const to = static_cast<char*>(node.data) + token * node.nb[1] + batch * values.ne[1] * node.nb[2];
    const auto* const turns =
        reinterpret_cast<const float*>(static_cast<const char*>(matrices.data) + token * matrices.nb[3]);
    for (int64_t part = 0; part < node.ne[0]; part += part_values) {
        const int64_t count = std::min(part_values, node.ne[0] - part);
        const Factors factors(turns + 2 * part, count);
        for (int64_t head = 0; head < values.ne[1]; ++head) {
            factors.turn(reinterpret_cast<float*>(to + head * node.nb[2]) + part,
                         reinterpret_cast<const float*>(from + head * values.nb[1]) + part, count);
        }
    }
}

void compute(const ggml_compute_params&, const ggml_tensor& node) {
    const int64_t tokens = node.ne[1];
    const int64_t all = tokens * node.src[0]->ne[3];
    const int64_t bytes = node.ne[0] * node.src[0]->ne[1] * static_cast<int64_t>(sizeof(float));
    const int64_t each = std::max<int64_t>(1, job_bytes / bytes);
    jobs_compute(ceil_div(all, each), [&](int64_t job) {
        for (int64_t i = job * each; i < std::min(all, (job + 1) * each); ++i) {
            turn_token(node, i % tokens, i / tokens);
        }
    });
}

}  // namespace

const Kernel rotation = {takes, compute, no_work};

}  // namespace sdcpp::cpu
