#include <algorithm>
#include <cmath>
#include <cstring>

#include "ggml-cpu/vec.h"
#include "ggml-impl.h"
#include "sdcpp/kernels/cpu/nodes.h"
#include "sdcpp/kernels/cpu/product.h"

namespace sdcpp::cpu {

namespace {

// Scores of so many keys are there at a time: as deep as a part, for they are multiplied by the values next.
constexpr int64_t key_block = part_depth;
constexpr int64_t most_queries = 192;
constexpr int64_t least_queries = 2 * block_columns;
constexpr int64_t jobs_per_thread = 4;
constexpr int64_t half = block_rows / 2;

float most_of(const float* values, int count) {
    Vector most = Vector{} - INFINITY;
    int i = 0;
    for (; i + lanes <= count; i += lanes) {
        const Vector some = load(values + i);
        most = some > most ? some : most;
    }
    float found = most[0];
    for (int lane = 1; lane < lanes; ++lane) {
        found = std::max(found, most[lane]);
    }
    for (; i < count; ++i) {
        found = std::max(found, values[i]);
    }
    return found;
}

// softmax(scale * q k^T + mask) v, a block of queries of one head at a time, over blocks of keys: the largest score so
// far and the sum of the exponentials are kept for each query, and what was summed is scaled when a larger one comes
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022).
class Attention {
public:
    Attention(const ggml_tensor& node, int threads)
        : q(*node.src[0]),
          k(*node.src[1]),
          v(*node.src[2]),
          mask(node.src[3]),
          result(node),
          scale(ggml_get_op_params_f32(&node, 0)) {
        const int64_t heads = q.ne[2] * q.ne[3];
        while (threads > 1 && queries > least_queries && heads * blocks() < jobs_per_thread * threads) {
            queries /= 2;
        }
        jobs = heads * blocks();
        depth_parts = (q.ne[0] + part_depth - 1) / part_depth;
        width = (v.ne[0] + half - 1) / half * half;
        const int64_t panels = (width + block_rows - 1) / block_rows;
        const int64_t columns = queries * column_stride;
        packed_keys = (depth_parts + 1) * columns;  // behind the queries and the scores
        packed_values = packed_keys + key_block * part_depth;
        sums = packed_values + panels * block_rows * key_block;
        largest = sums + queries * width;
        bytes = static_cast<size_t>(largest + 2 * queries) * sizeof(float) + alignment;
    }

    void compute(int64_t job, float* memory) const {
        const int64_t block = job % blocks();
        const int64_t head = job / blocks() % q.ne[2];
        const int64_t batch = job / blocks() / q.ne[2];
        const int64_t first = block * queries;
        const int64_t count = std::min(queries, q.ne[1] - first);
        pack_queries(memory, head, batch, first, count);
        float* const scores = memory + depth_parts * queries * column_stride;
        float* const most = memory + largest;
        float* const exponentials = most + queries;
        for (int64_t key = 0; key < k.ne[1]; key += key_block) {
            const int64_t keys = std::min(key_block, k.ne[1] - key);
            score(memory, scores, head, batch, key, keys, count);
            for (int64_t i = 0; i < count; ++i) {
                float* const row = scores + i * column_stride;
                if (mask != nullptr) {
                    add_mask(row, head, batch, first + i, key, keys);
                }
                const float found = most_of(row, static_cast<int>(keys));
                const float before = key > 0 ? most[i] : found;
                if (found == -INFINITY) {  // none of these keys is for this query
                    std::fill(row, row + keys, 0.0f);
                    most[i] = before;
                    exponentials[i] = key > 0 ? exponentials[i] : 0.0f;
                    continue;
                }
                most[i] = std::max(before, found);
                const auto sum = ggml_vec_soft_max_f32(static_cast<int>(keys), row, row, most[i]);
                const float less = std::exp(before - most[i]);
                exponentials[i] = static_cast<float>(sum) + (key > 0 ? exponentials[i] * less : 0.0f);
                if (key > 0 && less != 1.0f) {
                    ggml_vec_scale_f32(static_cast<int>(width), memory + sums + i * width, less);
                }
            }
            pack_values(memory + packed_values, head, batch, key, keys);
            part_compute(Numbers::exact_8, memory + packed_values, width, scores, count, memory + sums, width,
                         static_cast<int>(keys), key > 0);
        }
        for (int64_t i = 0; i < count; ++i) {
            char* const to = static_cast<char*>(result.data) + head * result.nb[1] + (first + i) * result.nb[2] +
                             batch * result.nb[3];
            const float* const from = memory + sums + i * width;
            const float sum = exponentials[i];
            std::transform(from, from + v.ne[0], reinterpret_cast<float*>(to),
                           [sum](float value) { return value / sum; });
        }
    }

    size_t bytes;  // that a thread needs
    int64_t jobs;

private:
    int64_t blocks() const { return (q.ne[1] + queries - 1) / queries; }

    static const char* matrix(const ggml_tensor& tensor, int64_t head, int64_t batch) {
        return static_cast<const char*>(tensor.data) + head * tensor.nb[2] + batch * tensor.nb[3];
    }

    void pack_queries(float* memory, int64_t head, int64_t batch, int64_t first, int64_t count) const {
        const char* const from = matrix(q, head, batch) + first * q.nb[1];
        for (int64_t part = 0; part < depth_parts; ++part) {
            const int64_t depth = part * part_depth;
            const int64_t deep = std::min<int64_t>(part_depth, q.ne[0] - depth);
            for (int64_t i = 0; i < count; ++i) {
                const auto* const row = reinterpret_cast<const float*>(from + i * q.nb[1]) + depth;
                float* const to = memory + (part * queries + i) * column_stride;
                std::transform(row, row + deep, to, [this](float value) { return value * scale; });
            }
        }
    }

    // Fills in the scores of a block of keys.
    void score(float* memory, float* scores, int64_t head, int64_t batch, int64_t key, int64_t keys,
               int64_t count) const {
        const char* const from = matrix(k, head / (q.ne[2] / k.ne[2]), batch) + key * k.nb[1];
        float* const packed = memory + packed_keys;
        for (int64_t part = 0; part < depth_parts; ++part) {
            const int64_t depth = part * part_depth;
            const int deep = static_cast<int>(std::min<int64_t>(part_depth, k.ne[0] - depth));
            for (int64_t row = 0; row < keys; row += block_rows) {
                const int rows = static_cast<int>(std::min<int64_t>(block_rows, keys - row));
                pack_memory_rows(Numbers::exact_8, packed + row * part_depth, k.type, from + row * k.nb[1], k.nb[1],
                                 rows, depth, deep);
            }
            part_compute(Numbers::exact_8, packed, keys, memory + part * queries * column_stride, count, scores,
                         column_stride, deep, part > 0);
        }
    }

    void add_mask(float* row, int64_t head, int64_t batch, int64_t query, int64_t key, int64_t keys) const {
        const char* const from = static_cast<const char*>(mask->data) + query * mask->nb[1] +
                                 head % mask->ne[2] * mask->nb[2] + batch % mask->ne[3] * mask->nb[3];
        const float* const more = reinterpret_cast<const float*>(from) + key;
        std::transform(row, row + keys, more, row, [](float value, float added) { return value + added; });
    }

    void pack_values(float* packed, int64_t head, int64_t batch, int64_t key, int64_t keys) const {
        const char* const from = matrix(v, head / (q.ne[2] / v.ne[2]), batch) + key * v.nb[1];
        for (int64_t begin = 0; begin < width; begin += block_rows) {
            const int64_t count = std::min<int64_t>(block_rows, v.ne[0] - begin);
            float* to = packed + begin * part_depth;
            for (int64_t i = 0; i < keys; ++i, to += block_rows) {
                const auto* const row = reinterpret_cast<const float*>(from + i * v.nb[1]) + begin;
                std::copy(row, row + count, to);
                std::fill(to + count, to + block_rows, 0.0f);
            }
        }
    }

    const ggml_tensor& q;
    const ggml_tensor& k;
    const ggml_tensor& v;
    const ggml_tensor* const mask;  // what is added to the scores: [keys, queries, heads or fewer, n or fewer]; or NULL
    const ggml_tensor& result;
    const float scale;
    int64_t queries = most_queries;  // of a job
    int64_t depth_parts;
    int64_t width;  // of the values, in half panels, which are computed alone
    // Where what a thread packs begins, in floats.
    int64_t packed_keys;
    int64_t packed_values;
    int64_t sums;
    int64_t largest;
};

bool takes(const ggml_tensor& node) {
    return node.op == GGML_OP_FLASH_ATTN_EXT && (node.src[3] == nullptr || is_f32(*node.src[3])) &&
           node.src[4] == nullptr && is_f32(*node.src[0]) && is_f32(*node.src[1]) && is_f32(*node.src[2]) &&
           is_f32(node) && ggml_get_op_params_f32(&node, 1) == 0.0f && ggml_get_op_params_f32(&node, 2) == 0.0f;
}

void compute(const ggml_compute_params& params, const ggml_tensor& node) {
    const Attention attention(node, params.nth);
    float* const memory = thread_memory(params, attention.bytes);
    jobs_compute(attention.jobs, [&](int64_t job) { attention.compute(job, memory); });
}

size_t work_size(const ggml_tensor& node, int threads) {
    // As many threads as are planned for, or fewer where some could not be started.
    return Attention(node, 1).bytes * static_cast<size_t>(threads);
}

}  // namespace

const Kernel attention = {takes, compute, work_size};

}  // namespace sdcpp::cpu
