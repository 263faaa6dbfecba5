#include "sdcpp/kernels/cpu/product.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ggml-cpu.h"
#include "sdcpp/kernels/cpu/quantised.h"

namespace sdcpp::cpu {

namespace {

// The largest block of a job: its packed rows and columns fit into a core's second cache.
constexpr int64_t most_rows = 512;
constexpr int64_t most_columns = 256;
// Jobs that are fewer leave threads without work at the end; those that are smaller pack too much for what they
// compute.
constexpr int64_t jobs_per_thread = 3;
constexpr int64_t least_rows = 2 * block_rows;
// Of so many rows the results are computed between two questions to memory.
constexpr int64_t ask_rows = 4 * block_rows;
constexpr int64_t least_columns = 4 * block_columns;
// Of the sums of chains so many are added to one another, and of what they give again.
constexpr int fan = 4;

struct Jobs {
    // With one thread the blocks are largest.
    Jobs(const Shape& shape, int threads) {
        int64_t rows_most = most_rows;
        int64_t columns_most = most_columns;
        const auto count_of = [&] {
            return shape.batches * ceil_div(shape.rows, rows_most) * ceil_div(shape.columns, columns_most);
        };
        while (count_of() < jobs_per_thread * threads && threads > 1) {
            const bool rows_go = rows_most > least_rows && shape.rows > rows_most / 2;
            const bool columns_go = columns_most > least_columns && shape.columns > columns_most / 2;
            if (columns_go && (columns_most >= rows_most || !rows_go)) {
                columns_most /= 2;
            } else if (rows_most > least_rows) {
                rows_most /= 2;
            } else {
                break;
            }
        }
        row_blocks = ceil_div(shape.rows, rows_most);
        column_blocks = ceil_div(shape.columns, columns_most);
        // As many for each thread, where that takes only a few more.
        for (int more = 0; more < threads && count_of() > 1; ++more) {
            if (shape.batches * row_blocks * (column_blocks + more) % threads == 0) {
                column_blocks += more;
                break;
            }
        }
        rows = ceil_div(ceil_div(shape.rows, row_blocks), block_rows) * block_rows;
        columns = ceil_div(ceil_div(shape.columns, column_blocks), block_columns) * block_columns;
        row_blocks = ceil_div(shape.rows, rows);
        column_blocks = ceil_div(shape.columns, columns);
        count = shape.batches * row_blocks * column_blocks;
        bytes = (static_cast<size_t>(rows) * part_depth + static_cast<size_t>(block_columns) * column_stride) *
                    sizeof(float) +
                alignment;
    }

    int64_t rows;  // of a job
    int64_t columns;
    int64_t row_blocks;
    int64_t column_blocks;
    int64_t count;
    size_t bytes;  // that a thread packs into
};

// Multiplies and adds a row's and a column's operand, one of each depth.
struct Floats {
    static constexpr int chain = part_depth;
    static Vector add(Vector sum, Vector left, float right) { return add_product(sum, left, all_of(right)); }
};

template <int length>
struct ExactFloats : Floats {
    static constexpr int chain = length;
};

#ifdef SDCPP_KERNELS_BF16
// Operands are pairs of bf16 of two depths, which the processor multiplies and adds as such.
struct Pairs {
    static constexpr int chain = part_depth;
    static Vector add(Vector sum, Vector left, float right) {
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)_mm512_set1_ps(right));
    }
};
#else
using Pairs = Floats;  // not used
#endif

// Sums the products of some depths, in registers.
template <typename Multiply, int vectors, int columns>
[[gnu::always_inline]] inline void block_sum(Vector (&sums)[columns][vectors], const float* panel, const float* packed,
                                             int begin, int end) {
    for (int k = begin; k < end; ++k) {
        Vector left[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            left[v] = load(panel + static_cast<ptrdiff_t>(k) * block_rows + v * lanes);
        }
#pragma GCC unroll 16
        for (int c = 0; c < columns; ++c) {
            const float right = packed[c * column_stride + k];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) {
                sums[c][v] = Multiply::add(sums[c][v], left[v], right);
            }
        }
    }
}

// Computes a block: `vectors` vectors of rows by `columns` columns.
template <typename Multiply, int vectors, int columns>
void block_compute(const float* panel, const float* packed, float* result, int64_t stride, int deep, bool add) {
    constexpr int chain = Multiply::chain;
    if (chain == part_depth || deep <= chain) {
        Vector sums[columns][vectors] = {};
        block_sum<Multiply>(sums, panel, packed, 0, deep);
        block_store(sums, result, stride, add);
        return;
    }
    // Not in the result itself, whose columns may all fall on the same lines of the cache. A level has the sum of some
    // of those below it, so that a sum of many is one of few large ones.
    constexpr int levels = 3;
    Vector totals[levels][columns][vectors];
    const auto row_of = [&](int level) { return reinterpret_cast<float*>(totals[level]); };
    int counts[levels] = {};  // of what is in a level
    for (int begin = 0; begin < deep; begin += chain) {
        {
            Vector sums[columns][vectors] = {};
            block_sum<Multiply>(sums, panel, packed, begin, std::min(begin + chain, deep));
            block_store(sums, row_of(0), vectors * lanes, counts[0]++ > 0);
        }
        const bool last = begin + chain >= deep;
        for (int level = 0; level + 1 < levels && (counts[level] == fan || (last && counts[level] > 0)); ++level) {
            block_store(totals[level], row_of(level + 1), vectors * lanes, counts[level + 1]++ > 0);
            counts[level] = 0;
        }
    }
    block_store(totals[levels - 1], result, stride, add);
}

using Block = void (*)(const float*, const float*, float*, int64_t, int, bool);

template <typename Multiply, int vectors, int... columns>
constexpr Block block_of(int count, std::integer_sequence<int, columns...>) {
    constexpr Block blocks[] = {block_compute<Multiply, vectors, columns + 1>...};
    return blocks[count - 1];
}

// Returns the block for fewer rows and columns, where half a block's vectors do for the rows.
template <typename Multiply>
Block block_for(int rows, int columns) {
    constexpr auto all = std::make_integer_sequence<int, block_columns>();
    return rows <= block_rows / 2 ? block_of<Multiply, block_vectors / 2>(columns, all)
                                  : block_of<Multiply, block_vectors>(columns, all);
}

Block block_for(Numbers numbers, int rows, int columns) {
    switch (numbers) {
        case Numbers::exact_8:
            return block_for<ExactFloats<8>>(rows, columns);
        case Numbers::exact_16:
            return block_for<ExactFloats<16>>(rows, columns);
        case Numbers::exact_32:
            return block_for<ExactFloats<32>>(rows, columns);
        case Numbers::pairs:
            return block_for<Pairs>(rows, columns);
        default:
            return block_for<Floats>(rows, columns);
    }
}

// Computes a block at the end of the rows, whose last vector is not whole in the result.
void edge_compute(Block block, const float* panel, const float* packed, float* result, int64_t stride, int deep,
                  bool add, int rows, int columns) {
    float whole[block_columns * block_rows];
    for (int c = 0; add && c < columns; ++c) {
        std::memcpy(whole + c * block_rows, result + c * stride, static_cast<size_t>(rows) * sizeof(float));
    }
    block(panel, packed, whole, block_rows, deep, add);
    for (int c = 0; c < columns; ++c) {
        std::memcpy(result + c * stride, whole + c * block_rows, static_cast<size_t>(rows) * sizeof(float));
    }
}

// Where a job lies in the result.
struct Place {
    Place(const Shape& shape, const Jobs& jobs, int64_t job)
        : batch(job / (jobs.row_blocks * jobs.column_blocks)),
          row(job % jobs.row_blocks * jobs.rows),
          column(job / jobs.row_blocks % jobs.column_blocks * jobs.columns),
          rows(std::min(jobs.rows, shape.rows - row)),
          columns(std::min(jobs.columns, shape.columns - column)) {}

    int64_t batch;
    int64_t row;
    int64_t column;
    int64_t rows;
    int64_t columns;
};

// Computes a job; what is packed next is asked for meanwhile, of the job that likely comes next, too.
void job_compute(const Operands& operands, const Shape& shape, const Jobs& jobs, int64_t job, int64_t next_job,
                 float* memory) {
    const Place place(shape, jobs, job);
    const Place next_place(shape, jobs, std::min(next_job, jobs.count - 1));
    float* const result = operands.column_of(place.batch, place.column) + place.row;
    const int64_t stride =
        place.columns > 1 ? operands.column_of(place.batch, place.column + 1) + place.row - result : 0;
    float* const packed = memory + jobs.rows * part_depth;
    const int each = shape.numbers == Numbers::pairs ? 2 : 1;
    const auto deep_from = [&](int64_t depth) {
        return static_cast<int>(std::min<int64_t>(each * part_depth, shape.depth - depth));
    };
    for (int64_t depth = 0; depth < shape.depth; depth += each * part_depth) {
        const int deep = deep_from(depth);
        for (int64_t r = 0; r < place.rows; r += block_rows) {
            const int count = static_cast<int>(std::min<int64_t>(block_rows, place.rows - r));
            operands.pack_rows(memory + r * part_depth, place.batch, place.row + r, count, depth, deep);
        }
        const bool last = depth + deep >= shape.depth;
        const Place& ahead = last ? next_place : place;
        const int64_t ahead_depth = last ? 0 : depth + deep;
        int64_t computed = 0;  // results of this part
        int64_t asked = 0;     // rows of what is packed next
        for (int64_t c = 0; c < place.columns; c += block_columns) {
            sdcpp_team_look();
            const int wide = static_cast<int>(std::min<int64_t>(block_columns, place.columns - c));
            for (int i = 0; i < wide; ++i) {
                operands.pack_column(packed + i * column_stride, place.batch, place.column + c + i, depth, deep);
            }
            for (int64_t r = 0; r < place.rows; r += ask_rows) {
                const int64_t rows = std::min(ask_rows, place.rows - r);
                computed += rows * wide;
                const int64_t until = ahead.rows * computed / (place.rows * place.columns);
                operands.ask_rows(ahead.batch, ahead.row + asked, static_cast<int>(until - asked), ahead_depth,
                                  deep_from(ahead_depth));
                asked = until;
                part_compute(shape.numbers, memory + r * part_depth, rows, packed, wide, result + c * stride + r,
                             stride, deep / each, depth > 0);
            }
        }
    }
}

// Makes pairs of bf16, rounded to the nearest, of an even number of floats.
void to_pairs([[maybe_unused]] float* to, [[maybe_unused]] const float* from, [[maybe_unused]] int deep) {
#ifdef SDCPP_KERNELS_BF16
    int k = 0;
    for (; k + 2 * lanes <= deep; k += 2 * lanes) {
        store(to + k / 2, (Vector)_mm512_cvtne2ps_pbh((__m512)load(from + k + lanes), (__m512)load(from + k)));
    }
    if (k < deep) {
        const auto some = [&](int begin) {
            const int left = std::clamp(deep - begin, 0, lanes);
            return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << left) - 1), from + begin);
        };
        const auto pairs = (__m512i)_mm512_cvtne2ps_pbh(some(k + lanes), some(k));
        _mm512_mask_storeu_epi32(to + k / 2, static_cast<__mmask16>((1u << ((deep - k) / 2)) - 1), pairs);
    }
#endif
}

// Asks memory for what is read after next, into the second cache.
void prefetch(const char* from, size_t bytes) {
    for (size_t line = 0; line < bytes; line += alignment) {
        __builtin_prefetch(from + line, 0, 2);
    }
}

}  // namespace

void to_floats(float* to, ggml_type type, const char* from, int deep) {
    switch (type) {
        case GGML_TYPE_F32:
            std::memcpy(to, from, static_cast<size_t>(deep) * sizeof(float));
            break;
        case GGML_TYPE_F16:
            ggml_cpu_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t*>(from), to, deep);
            break;
        case GGML_TYPE_BF16:
            ggml_cpu_bf16_to_fp32(reinterpret_cast<const ggml_bf16_t*>(from), to, deep);
            break;
        default:
            if (!quantised_to_floats(to, type, from, deep)) {
                ggml_get_type_traits(type)->to_float(from, to, deep);
            }
    }
}

void part_compute(Numbers numbers, const float* panels, int64_t rows, const float* packed, int64_t columns,
                  float* result, int64_t stride, int deep, bool add) {
    for (int64_t c = 0; c < columns; c += block_columns) {
        sdcpp_team_look();
        const int wide = static_cast<int>(std::min<int64_t>(block_columns, columns - c));
        const float* const group = packed + c * column_stride;
        for (int64_t r = 0; r < rows; r += block_rows) {
            const int count = static_cast<int>(std::min<int64_t>(block_rows, rows - r));
            const float* const panel = panels + r * part_depth;
            float* const to = result + c * stride + r;
            const Block block = block_for(numbers, count, wide);
            if (count < block_rows && count != block_rows / 2) {
                edge_compute(block, panel, group, to, stride, deep, add, count, wide);
            } else {
                block(panel, group, to, stride, deep, add);
            }
        }
    }
}

float* thread_memory(const ggml_compute_params& params, size_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(params.wdata) + bytes * static_cast<size_t>(params.ith);
    return reinterpret_cast<float*>((begin + alignment - 1) / alignment * alignment);
}

size_t product_work_size(const Shape& shape, int threads) {
    // As many threads as are planned for, or fewer where some could not be started.
    return Jobs(shape, 1).bytes * static_cast<size_t>(threads);
}

void product_compute(const ggml_compute_params& params, const Shape& shape, const Operands& operands) {
    const Jobs jobs(shape, params.nth);
    float* const memory = thread_memory(params, jobs.bytes);
    jobs_compute(jobs.count, [&](int64_t job) { job_compute(operands, shape, jobs, job, job + params.nth, memory); });
}

void pack_memory_rows(Numbers numbers, float* panel, ggml_type type, const char* from, size_t stride, int count,
                      int64_t depth, int deep) {
    alignas(alignment) float floats[lanes][part_depth];
    // Pairs lie in memory as they are packed.
    const bool plain = type == GGML_TYPE_F32 || numbers == Numbers::pairs;
    const size_t offset = ggml_row_size(type, depth);
    deep /= numbers == Numbers::pairs ? 2 : 1;
    for (int first = 0; first < block_rows; first += lanes) {
        float* const to = panel + first;
        const int some = std::min(count - first, lanes);
        if (some <= 0) {
            for (int k = 0; k < deep; ++k) {
                store(to + k * block_rows, Vector{});
            }
            continue;
        }
        const float* rows[lanes];
        for (int i = 0; i < lanes; ++i) {
            // Beyond the rows the last one is packed again: what comes of it is not kept.
            const int row = std::min(i, some - 1);
            const char* const values = from + stride * static_cast<size_t>(first + row) + offset;
            if (plain) {
                rows[i] = reinterpret_cast<const float*>(values);
            } else {
                rows[i] = floats[row];
                if (i == row) {
                    to_floats(floats[row], type, values, deep);
                }
            }
        }
        int k = 0;
        for (; k + lanes <= deep; k += lanes) {
            Vector square[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                square[i] = load(rows[i] + k);
            }
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                store(to + (k + i) * block_rows, square[i]);
            }
        }
        for (; k < deep; ++k) {
            for (int i = 0; i < lanes; ++i) {
                std::memcpy(to + k * block_rows + i, rows[i] + k, sizeof(float));
            }
        }
    }
}

void ask_memory_rows(ggml_type type, const char* from, size_t stride, int count, int64_t depth, int deep) {
    from += ggml_row_size(type, depth);
    const size_t bytes = ggml_row_size(type, deep);
    for (int row = 0; row < count; ++row) {
        prefetch(from + stride * static_cast<size_t>(row), bytes);
    }
}

void pack_memory_column(Numbers numbers, float* packed, ggml_type type, const char* from, size_t stride, int64_t depth,
                        int deep) {
    const char* const values = from + ggml_row_size(type, depth);
    prefetch(values + block_columns * stride, ggml_row_size(type, deep));
    if (numbers != Numbers::pairs) {
        to_floats(packed, type, values, deep);
    } else if (type == GGML_TYPE_F32) {
        to_pairs(packed, reinterpret_cast<const float*>(values), deep);
    } else {
        float floats[2 * part_depth];
        to_floats(floats, type, values, deep);
        to_pairs(packed, floats, deep);
    }
}

}  // namespace sdcpp::cpu
