// Products of matrices in blocks that fit the caches. Both operands are packed, a part of each at a time, into this
// thread's own memory as floats: threads share nothing but the number of the next job, so that none waits for another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml-cpu/ggml-cpu-impl.h"
#include "sdcpp/kernels/cpu/vectors.h"
#include "sdcpp/threads/team.h"

namespace sdcpp::cpu {

// How deep a part of the operands is that is packed at a time: a multiple of the blocks of every quantised type, and as
// many columns of it as a block has stay in the smallest cache.
constexpr int part_depth = 256;
// The floats between two columns of the packed right operand, which are not to fall on the same lines of the cache.
constexpr int column_stride = part_depth + 16;

inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// What operands are packed as.
enum class Numbers {
    floats,
    // Floats that are no rounded ones', as f32 weights are: their sums are to err no more than ggml's, which are made
    // of chains of a 64th of the depth. So many are summed in a chain here.
    exact_8,
    exact_16,
    exact_32,
    pairs,  // of bf16, two depths in the place of a float: where the processor multiplies them, twice as fast
};

// Returns in what chains a sum of so many products errs no more than ggml's.
constexpr Numbers exact_for(int64_t depth) {
    return depth >= 2048 ? Numbers::exact_32 : depth >= 1024 ? Numbers::exact_16 : Numbers::exact_8;
}

// result[batch][column][row] = sum over depth of left[batch][row][depth] * right[batch][column][depth]
struct Shape {
    int64_t rows;
    int64_t columns;
    int64_t depth;
    int64_t batches;
    Numbers numbers = Numbers::floats;
};

// What is multiplied, and where the results go.
class Operands {
public:
    virtual ~Operands() = default;
    // Packs `count` rows (block_rows at most) from a depth on: panel[depth][block_rows], whatever beyond the count. Of
    // pairs the depth is even, and twice the panel's.
    virtual void pack_rows(float* panel, int64_t batch, int64_t row, int count, int64_t depth, int deep) const = 0;
    // Asks memory for rows that are packed next.
    virtual void ask_rows(int64_t, int64_t, int, int64_t, int) const {}
    // Packs a column from a depth on.
    virtual void pack_column(float* packed, int64_t batch, int64_t column, int64_t depth, int deep) const = 0;
    // Returns where the results of a column begin, the rows one after another.
    virtual float* column_of(int64_t batch, int64_t column) const = 0;
};

// Multiplies packed operands of one part: so many rows, in panels of block_rows * part_depth, by so many columns. The
// results of a column begin a stride behind those of the one before; they are added to what is there, or replace it.
void part_compute(Numbers numbers, const float* panels, int64_t rows, const float* packed, int64_t columns,
                  float* result, int64_t stride, int deep, bool add);

// The bytes between what threads have of a work buffer.
constexpr size_t alignment = 64;
// Returns where a thread's part of the work buffer begins, of so many bytes and an alignment each.
float* thread_memory(const ggml_compute_params& params, size_t bytes);

// Lets the threads of a team take jobs, one after another, until none is left.
template <typename F>
void jobs_compute(int64_t count, F&& compute) {
    for (int64_t job = sdcpp_team_take(count); job >= 0; job = sdcpp_team_take(count)) {
        compute(job);
        sdcpp_team_finish(count);
    }
}

// Returns the bytes of the work buffer that a product takes with so many threads.
size_t product_work_size(const Shape& shape, int threads);
// Computes this thread's part of a product; called by all threads of the team.
void product_compute(const ggml_compute_params& params, const Shape& shape, const Operands& operands);

// Makes floats of values that lie in memory one after another.
void to_floats(float* to, ggml_type type, const char* from, int deep);
// Packs rows that lie in memory one value after another, a stride apart; pairs are of rows of bf16.
void pack_memory_rows(Numbers numbers, float* panel, ggml_type type, const char* from, size_t stride, int count,
                      int64_t depth, int deep);
// Asks memory for such rows, which are packed next.
void ask_memory_rows(ggml_type type, const char* from, size_t stride, int count, int64_t depth, int deep);
// Packs values that lie in memory one after another, from a depth on. The next columns are a stride apart.
void pack_memory_column(Numbers numbers, float* packed, ggml_type type, const char* from, size_t stride, int64_t depth,
                        int deep);

}  // namespace sdcpp::cpu
