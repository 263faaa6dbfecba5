#include <algorithm>
#include <cstring>

#include "ggml-impl.h"
#include "sdcpp/kernels/cpu/nodes.h"
#include "sdcpp/kernels/cpu/product.h"

// Products with so few columns that reading the weights is what takes time: a row of them is made floats of, a part at
// a time, and multiplied by each column while it is in the smallest cache.

namespace sdcpp::cpu {

namespace {

// What is summed of a row and a column side by side, as many chains as ggml's.
constexpr int sums_count = 4;
constexpr int step = sums_count * lanes;
constexpr int most_columns = worthy_columns - 1;
// What a thread reads of the weights until it looks for the next job.
constexpr size_t job_bytes = 64u << 10;

bool takes(const ggml_tensor& node) {
    return node.op == GGML_OP_MUL_MAT && is_f32(node) && is_f32(*node.src[1]) && is_readable(*node.src[0]) &&
           node.ne[1] <= most_columns;
}

// Adds the products of a part of a row and of a column to their sums.
void add_products(Vector (&sums)[sums_count], float& rest, const float* row, const float* column, int deep) {
    int k = 0;
    for (; k + step <= deep; k += step) {
#pragma GCC unroll 4
        for (int i = 0; i < sums_count; ++i) {
            sums[i] = add_product(sums[i], load(row + k + i * lanes), load(column + k + i * lanes));
        }
    }
    for (; k + lanes <= deep; k += lanes) {
        sums[0] = add_product(sums[0], load(row + k), load(column + k));
    }
    for (; k < deep; ++k) {
        rest += row[k] * column[k];
    }
}

float sum_of(const Vector (&sums)[sums_count]) {
    const Vector all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float parts[lanes];
    store(parts, all);
    for (int half = lanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) {
            parts[i] += parts[half + i];
        }
    }
    return parts[0];
}

class Product {
public:
    explicit Product(const ggml_tensor& node)
        : left(*node.src[0]),
          right(*node.src[1]),
          result(node),
          each_rows(std::clamp<int64_t>(static_cast<int64_t>(job_bytes / ggml_row_size(left.type, left.ne[0])), 1,
                                        left.ne[1])),
          row_jobs(ceil_div(left.ne[1], each_rows)),
          jobs(row_jobs * result.ne[2] * result.ne[3]) {}

    void compute(int64_t job) const {
        sdcpp_team_look();
        const int64_t i2 = job / row_jobs % result.ne[2];
        const int64_t i3 = job / row_jobs / result.ne[2];
        const int64_t first = job % row_jobs * each_rows;
        const int64_t last = std::min(first + each_rows, left.ne[1]);
        const char* const rows = static_cast<const char*>(left.data) + i2 / (right.ne[2] / left.ne[2]) * left.nb[2] +
                                 i3 / (right.ne[3] / left.ne[3]) * left.nb[3];
        const char* const columns = static_cast<const char*>(right.data) + i2 * right.nb[2] + i3 * right.nb[3];
        char* const to = static_cast<char*>(result.data) + i2 * result.nb[2] + i3 * result.nb[3];
        for (int64_t row = first; row < last; ++row) {
            float found[most_columns];
            multiply(found, rows + row * left.nb[1], columns);
            for (int64_t c = 0; c < right.ne[1]; ++c) {
                reinterpret_cast<float*>(to + c * result.nb[1])[row] = found[c];
            }
        }
    }

    void multiply(float* found, const char* row, const char* columns) const {
        Vector sums[most_columns][sums_count] = {};
        float rest[most_columns] = {};
        for (int64_t depth = 0; depth < left.ne[0]; depth += part_depth) {
            const int deep = static_cast<int>(std::min<int64_t>(part_depth, left.ne[0] - depth));
            float floats[part_depth];
            to_floats(floats, left.type, row + ggml_row_size(left.type, depth), deep);
            for (int64_t c = 0; c < right.ne[1]; ++c) {
                const auto* const column = reinterpret_cast<const float*>(columns + c * right.nb[1]) + depth;
                add_products(sums[c], rest[c], floats, column, deep);
            }
        }
        for (int64_t c = 0; c < right.ne[1]; ++c) {
            found[c] = sum_of(sums[c]) + rest[c];
        }
    }

private:
    const ggml_tensor& left;
    const ggml_tensor& right;
    const ggml_tensor& result;
    const int64_t each_rows;  // of a job
    const int64_t row_jobs;

public:
    const int64_t jobs;
};

void compute(const ggml_compute_params&, const ggml_tensor& node) {
    const Product product(node);
    jobs_compute(product.jobs, [&](int64_t job) { product.compute(job); });
}

}  // namespace

const Kernel few_columns = {takes, compute, no_work};

}  // namespace sdcpp::cpu
