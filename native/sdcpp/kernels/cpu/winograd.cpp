#include <algorithm>
#include <cstring>
#include <utility>

#include "ggml-impl.h"
#include "sdcpp/kernels/cpu/nodes.h"
#include "sdcpp/kernels/cpu/product.h"

// Convolutions by 3x3 filters with a quarter of the products: F(4x4, 3x3) of Winograd's, at the points 0, 1, -1, 2, -2
// and infinity (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015). Tiles of 4x4 results are
// computed from patches of 6x6 pixels: patch and filter are made of 36 points each, which are multiplied, summed over
// the channels, and made of a tile. That errs some times as much as a plain sum of floats, and some hundredths of what
// the rounding of the picture to halves does, which is how ggml convolves.

namespace sdcpp::cpu {

namespace {

constexpr int taps = 3;
constexpr int tile = 4;
constexpr int patch = tile + taps - 1;
constexpr int points = patch * patch;
// So many vectors have the pixels that one step right of a tile has for as many tiles as a vector has lanes.
constexpr int lane_tiles = lanes / tile;
// What is multiplied at a time of a point fits into the smallest cache, and that of all points into the second one.
constexpr int64_t part_channels = 64;
constexpr int64_t most_tiles = 96;
constexpr int64_t enough_tiles = 48;
constexpr int64_t least_tiles = 24;
constexpr int64_t most_patch_floats = 5 << 18;
constexpr int64_t jobs_per_thread = 3;
constexpr int64_t least_filters = 2 * block_rows;
// How many filters' channels are transformed at a time.
constexpr int filter_channels = 16;
static_assert(filter_channels * taps * taps <= part_depth && part_channels % filter_channels == 0);
// What the transforms take for a filter's channel, for a patch's and for a result's tile, in products.
constexpr double filter_cost = 140.0;
constexpr double patch_cost = 200.0;
constexpr double tile_cost = 200.0;
constexpr double gain = 1.2;  // that is worth it

using Quad = float __attribute__((vector_size(tile * sizeof(float)), aligned(sizeof(float)), may_alias));

// B^T d, the points of a row or a column of a patch.
[[gnu::always_inline]] inline void patch_points(const Vector (&d)[patch], Vector (&r)[patch]) {
    const Vector a = d[4] - 4.0f * d[2];
    const Vector b = d[3] - 4.0f * d[1];
    const Vector c = d[4] - d[2];
    const Vector e = d[3] - d[1];
    r[0] = 4.0f * d[0] + (d[4] - 5.0f * d[2]);
    r[1] = a + b;
    r[2] = a - b;
    r[3] = c + 2.0f * e;
    r[4] = c - 2.0f * e;
    r[5] = 4.0f * d[1] + (d[5] - 5.0f * d[3]);
}

// G g, the points of a row or a column of a filter.
[[gnu::always_inline]] inline void filter_points(const Vector (&g)[taps], Vector (&r)[patch]) {
    const Vector outer = g[0] + g[2];
    const Vector slope = g[0] + 4.0f * g[2];
    r[0] = 0.25f * g[0];
    r[1] = (outer + g[1]) * (-1.0f / 6.0f);
    r[2] = (outer - g[1]) * (-1.0f / 6.0f);
    r[3] = (slope + 2.0f * g[1]) * (1.0f / 24.0f);
    r[4] = (slope - 2.0f * g[1]) * (1.0f / 24.0f);
    r[5] = g[2];
}

// A^T m, a row or a column of a tile.
[[gnu::always_inline]] inline void tile_values(const Vector (&m)[patch], Vector (&y)[tile]) {
    const Vector sum = m[1] + m[2];
    const Vector difference = m[1] - m[2];
    const Vector far_sum = m[3] + m[4];
    const Vector far_difference = m[3] - m[4];
    y[0] = m[0] + sum + far_sum;
    y[1] = difference + 2.0f * far_difference;
    y[2] = sum + 4.0f * far_sum;
    y[3] = difference + 8.0f * far_difference + m[5];
}

// Computes one point of a block: left[channel][block_rows] times right[channel][stride], for so many columns.
template <int vectors, int columns>
void block_compute(const float* left, const float* right, int64_t stride, float* result, int channels, bool add) {
    Vector sums[columns][vectors] = {};
    for (int k = 0; k < channels; ++k, left += block_rows, right += stride) {
        Vector row[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            row[v] = load(left + v * lanes);
        }
#pragma GCC unroll 16
        for (int c = 0; c < columns; ++c) {
            const Vector number = all_of(right[c]);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) {
                sums[c][v] = add_product(sums[c][v], row[v], number);
            }
        }
    }
    block_store(sums, result, block_rows, add);
}

using Block = void (*)(const float*, const float*, int64_t, float*, int, bool);

template <int vectors, int... columns>
Block block_of(int count, std::integer_sequence<int, columns...>) {
    constexpr Block blocks[] = {block_compute<vectors, columns + 1>...};
    return blocks[count - 1];
}

Block block_for(int64_t rows, int64_t columns) {
    constexpr auto all = std::make_integer_sequence<int, block_columns>();
    const int count = static_cast<int>(columns);
    return rows <= block_rows / 2 ? block_of<block_vectors / 2>(count, all) : block_of<block_vectors>(count, all);
}

// Where a vector's lanes are read from, for each row of a patch.
struct Span {
    int64_t offsets[patch];  // of lines, in bytes; below zero: the line is beyond the picture
    int64_t x;
};

// Reads a line from `x` on, with zeros beyond the picture.
template <int count>
[[gnu::always_inline]] inline void read(float* to, const float* line, int64_t x, int64_t width) {
    if (x >= 0 && x + count <= width) {
        std::memcpy(to, line + x, count * sizeof(float));
        return;
    }
    for (int i = 0; i < count; ++i) {
        to[i] = x + i >= 0 && x + i < width ? line[x + i] : 0.0f;
    }
}

[[gnu::always_inline]] inline Vector read_lanes(const float* line, int64_t x, int64_t width) {
#ifdef __AVX512F__
    const auto below = [](int64_t end) {
        return static_cast<__mmask16>((1u << std::clamp<int64_t>(end, 0, lanes)) - 1);
    };
    return (Vector)_mm512_maskz_loadu_ps(static_cast<__mmask16>(below(width - x) & ~below(-x)), line + x);
#else
    float values[lanes];
    read<lanes>(values, line, x, width);
    return load(values);
#endif
}

class Convolution {
public:
    Convolution(const ggml_tensor& node, int threads)
        : filters(*node.src[0]),
          picture(*node.src[1]),
          result(node),
          pad_x(ggml_get_op_params_i32(&node, 2)),
          pad_y(ggml_get_op_params_i32(&node, 3)),
          channels(filters.ne[2]),
          filter_count(filters.ne[3]),
          tiles_x(ceil_div(node.ne[0], tile)),
          tiles_y(ceil_div(node.ne[1], tile)),
          tiles(tiles_x * tiles_y * node.ne[3]) {
        divide(tiles_at_once());
        filter_jobs = 1;
        while (threads > 1 && tile_jobs * filter_jobs < jobs_per_thread * threads) {
            if (ceil_div(filter_count, filter_jobs) >= 2 * least_filters) {
                filter_jobs += 1;
            } else if (each_tiles > least_tiles) {
                divide(each_tiles / 2);
            } else {
                break;
            }
        }
        each_filters = ceil_div(ceil_div(filter_count, filter_jobs), block_rows) * block_rows;
        filter_jobs = ceil_div(filter_count, each_filters);
        jobs = tile_jobs * filter_jobs;
        const int64_t floats = points * (patch_stride() + left_stride + sum_stride()) + panel_floats;
        bytes = static_cast<size_t>(floats) * sizeof(float) + alignment;
    }

    // Tells whether that is faster than all products, for one picture: the same however many there are.
    bool is_faster() const {
        const auto some = static_cast<double>(tiles_x * tiles_y);
        const auto pairs = static_cast<double>(channels * ceil_div(filter_count, lanes) * lanes);
        const auto times = static_cast<double>(ceil_div(tiles_x * tiles_y, tiles_at_once()));
        const double products = pairs * points * some + pairs * filter_cost * times +
                                patch_cost * some * static_cast<double>(channels) +
                                tile_cost * some * static_cast<double>(filter_count);
        const auto results = static_cast<double>(result.ne[0] * result.ne[1] * filter_count);
        return products * gain < results * static_cast<double>(channels) * taps * taps;
    }

    void compute(int64_t job, float* memory) const {
        const int64_t first = job % tile_jobs * each_tiles;
        const int64_t count = std::min(each_tiles, tiles - first);
        float* const left = memory + points * patch_stride();
        float* const sums = left + points * left_stride;
        float* const panel = sums + points * sum_stride();
        transform_picture(memory, first, count);
        const int64_t begin = job / tile_jobs * each_filters;
        const int64_t end = std::min(begin + each_filters, filter_count);
        for (int64_t filter = begin; filter < end; filter += block_rows) {
            const int64_t rows = std::min<int64_t>(block_rows, end - filter);
            for (int64_t channel = 0; channel < channels; channel += part_channels) {
                const auto deep = static_cast<int>(std::min(part_channels, channels - channel));
                transform_filters(left, panel, filter, static_cast<int>(rows), channel, deep);
                const bool last = channel + deep >= channels;
                const int64_t next_channel = last ? 0 : channel + deep;
                const int64_t next_filter = last ? filter + block_rows : filter;
                for (int point = 0; point < points; ++point) {
                    sdcpp_team_look();
                    ask_filters(next_filter, std::min(next_filter + block_rows, end), next_channel, point);
                    const float* const right = memory + point * patch_stride() + channel * tile_stride;
                    for (int64_t t = 0; t < count; t += block_columns) {
                        block_for(rows, std::min<int64_t>(block_columns, count - t))(
                            left + point * left_stride, right + t, tile_stride,
                            sums + point * sum_stride() + t * block_rows, deep, channel > 0);
                    }
                }
            }
            for (int64_t t = 0; t < count; ++t) {
                for (int64_t row = 0; row < rows; row += lanes) {
                    store_tile(sums + t * block_rows + row, first + t, filter + row,
                               std::min<int64_t>(lanes, rows - row));
                }
            }
        }
    }

    size_t bytes;  // that a thread needs
    int64_t jobs;

private:
    // The points lie a cache line more than that apart, so that they do not all fall on the same lines of the cache.
    static constexpr int64_t left_stride = part_channels * block_rows + lanes;
    static constexpr int64_t panel_floats = filter_channels * taps * taps * block_rows;
    // What is stored of a channel's last tiles may reach into the next channel, which is stored later.
    int64_t patch_stride() const { return channels * tile_stride + lanes; }
    int64_t sum_stride() const { return tile_stride * block_rows + lanes; }

    int64_t tiles_at_once() const {
        return std::clamp(most_patch_floats / (points * channels), enough_tiles, most_tiles);
    }

    void divide(int64_t most) {
        tile_jobs = ceil_div(tiles, most);
        each_tiles = ceil_div(ceil_div(tiles, tile_jobs), lane_tiles) * lane_tiles;
        tile_jobs = ceil_div(tiles, each_tiles);
        tile_stride = std::min(each_tiles, tiles);
    }

    Span span_of(int64_t number) const {
        Span span;
        const int64_t y = number / tiles_x % tiles_y * tile - pad_y;
        const int64_t batch = number / (tiles_x * tiles_y);
        for (int r = 0; r < patch; ++r) {
            const bool inside = number < tiles && y + r >= 0 && y + r < picture.ne[1];
            span.offsets[r] =
                inside ? batch * static_cast<int64_t>(picture.nb[3]) + (y + r) * static_cast<int64_t>(picture.nb[1])
                       : -1;
        }
        span.x = number % tiles_x * tile - pad_x;
        return span;
    }

    // Makes the points of patches, of all channels: [point][channel][tile].
    void transform_picture(float* to, int64_t first, int64_t count) const {
        // A vector's tiles lie side by side where rows have as many; otherwise each is read alone.
        const bool whole = tiles_x % lane_tiles == 0;
        const int64_t step = whole ? lane_tiles : 1;
        Span spans[most_tiles + lanes];
        for (int64_t t = 0; t < ceil_div(count, lanes) * lanes; t += step) {
            spans[t / step] = span_of(t < count ? first + t : tiles);
        }
        for (int64_t channel = 0; channel < channels; ++channel) {
            const char* const plane = static_cast<const char*>(picture.data) + channel * picture.nb[2];
            for (int64_t t = 0; t < count; t += lanes) {
                float* const points_to = to + channel * tile_stride + t;
                if (whole) {
                    transform_patches<true>(points_to, plane, spans + t / step);
                } else {
                    transform_patches<false>(points_to, plane, spans + t / step);
                }
            }
        }
    }

    template <bool whole>
    void transform_patches(float* to, const char* plane, const Span* spans) const {
        Vector rows[patch][patch];
        for (int r = 0; r < patch; ++r) {
            // The first four columns of each patch, and the four behind those.
            Vector near[tile];
            Vector far[tile];
            if constexpr (whole) {
#pragma GCC unroll 4
                for (int v = 0; v < tile; ++v) {
                    const Span& span = spans[v];
                    const bool inside = span.offsets[r] >= 0;
                    const auto* const line = reinterpret_cast<const float*>(plane + span.offsets[r]);
                    near[v] = inside ? read_lanes(line, span.x, picture.ne[0]) : Vector{};
                    far[v] = inside ? read_lanes(line, span.x + tile, picture.ne[0]) : Vector{};
                }
            } else {
                float values[2][tile * lanes] = {};
                for (int i = 0; i < lanes; ++i) {
                    const Span& span = spans[i];
                    if (span.offsets[r] >= 0) {
                        const auto* const line = reinterpret_cast<const float*>(plane + span.offsets[r]);
                        read<tile>(values[0] + i * tile, line, span.x, picture.ne[0]);
                        read<patch - tile>(values[1] + i * tile, line, span.x + tile, picture.ne[0]);
                    }
                }
#pragma GCC unroll 4
                for (int v = 0; v < tile; ++v) {
                    near[v] = load(values[0] + v * lanes);
                    far[v] = load(values[1] + v * lanes);
                }
            }
            const Vector even[] = {every_other<false>(near[0], near[1]), every_other<false>(near[2], near[3]),
                                   every_other<false>(far[0], far[1]), every_other<false>(far[2], far[3])};
            const Vector odd[] = {every_other<true>(near[0], near[1]), every_other<true>(near[2], near[3]),
                                  every_other<true>(far[0], far[1]), every_other<true>(far[2], far[3])};
            const Vector columns[patch] = {every_other<false>(even[0], even[1]), every_other<false>(odd[0], odd[1]),
                                           every_other<true>(even[0], even[1]),  every_other<true>(odd[0], odd[1]),
                                           every_other<false>(even[2], even[3]), every_other<false>(odd[2], odd[3])};
            patch_points(columns, rows[r]);
        }
        for (int x = 0; x < patch; ++x) {
            const Vector column[patch] = {rows[0][x], rows[1][x], rows[2][x], rows[3][x], rows[4][x], rows[5][x]};
            Vector made[patch];
            patch_points(column, made);
#pragma GCC unroll 6
            for (int y = 0; y < patch; ++y) {
                store(to + (y * patch + x) * patch_stride(), made[y]);
            }
        }
    }

    // Makes the points of a block of filters, of some channels: [point][channel][filter].
    void transform_filters(float* to, float* panel, int64_t filter, int count, int64_t channel, int deep) const {
        const char* const from = static_cast<const char*>(filters.data) + filter * filters.nb[3];
        for (int begin = 0; begin < deep; begin += filter_channels) {
            const int some = std::min(filter_channels, deep - begin);
            pack_memory_rows(Numbers::floats, panel, filters.type, from, filters.nb[3], count,
                             (channel + begin) * taps * taps, some * taps * taps);
            for (int c = 0; c < some; ++c) {
                for (int v = 0; v < count; v += lanes) {
                    transform_filter(to + (begin + c) * block_rows + v, panel + c * taps * taps * block_rows + v);
                }
            }
        }
    }

    // Asks memory for a share of the filters that are transformed next.
    void ask_filters(int64_t begin, int64_t end, int64_t channel, int share) const {
        const int64_t first = begin + block_rows * share / points;
        const int64_t last = std::min(begin + block_rows * (share + 1) / points, end);
        const auto deep = static_cast<int>(std::min(part_channels, channels - channel));
        if (first < last) {
            const char* const from = static_cast<const char*>(filters.data) + first * filters.nb[3];
            ask_memory_rows(filters.type, from, filters.nb[3], static_cast<int>(last - first), channel * taps * taps,
                            deep * taps * taps);
        }
    }

    static void transform_filter(float* to, const float* from) {
        Vector rows[taps][patch];
#pragma GCC unroll 3
        for (int y = 0; y < taps; ++y) {
            const float* const row = from + y * taps * block_rows;
            const Vector values[taps] = {load(row), load(row + block_rows), load(row + 2 * block_rows)};
            filter_points(values, rows[y]);
        }
#pragma GCC unroll 6
        for (int x = 0; x < patch; ++x) {
            const Vector column[taps] = {rows[0][x], rows[1][x], rows[2][x]};
            Vector made[patch];
            filter_points(column, made);
#pragma GCC unroll 6
            for (int y = 0; y < patch; ++y) {
                store(to + (y * patch + x) * left_stride, made[y]);
            }
        }
    }

    // Makes a tile of the sums of its points, for as many filters as a vector has lanes.
    void store_tile(const float* sums, int64_t number, int64_t filter, int64_t count) const {
        Vector columns[patch][tile];  // of points, a row of the tile for each
#pragma GCC unroll 6
        for (int x = 0; x < patch; ++x) {
            Vector column[patch];
#pragma GCC unroll 6
            for (int y = 0; y < patch; ++y) {
                column[y] = load(sums + (y * patch + x) * sum_stride());
            }
            tile_values(column, columns[x]);
        }
        const int64_t x = number % tiles_x * tile;
        const int64_t y = number / tiles_x % tiles_y * tile;
        const int64_t batch = number / (tiles_x * tiles_y);
        const int64_t wide = std::min<int64_t>(tile, result.ne[0] - x);
        char* const plane = static_cast<char*>(result.data) + batch * result.nb[3] + filter * result.nb[2];
        // As many rows as a vector holds at a time, first with a lane a filter, then with a vector a filter.
        for (int row = 0; row < tile; row += lane_tiles) {
            Vector square[lanes];
#pragma GCC unroll 4
            for (int r = 0; r < lane_tiles; ++r) {
                const Vector line[patch] = {columns[0][row + r], columns[1][row + r], columns[2][row + r],
                                            columns[3][row + r], columns[4][row + r], columns[5][row + r]};
                Vector values[tile];
                tile_values(line, values);
                std::copy(values, values + tile, square + r * tile);
            }
            transpose(square);
            const auto high = static_cast<int>(std::min<int64_t>(lane_tiles, result.ne[1] - y - row));
            for (int64_t i = 0; i < count; ++i) {
                const auto* const from = reinterpret_cast<const float*>(square + i);
                char* const lines = plane + static_cast<size_t>(i) * result.nb[2];
                for (int r = 0; r < high; ++r) {
                    auto* const to =
                        reinterpret_cast<float*>(lines + static_cast<size_t>(y + row + r) * result.nb[1]) + x;
                    if (wide == tile) {
                        *reinterpret_cast<Quad*>(to) = *reinterpret_cast<const Quad*>(from + r * tile);
                    } else {
                        std::copy(from + r * tile, from + r * tile + wide, to);
                    }
                }
            }
        }
    }

    const ggml_tensor& filters;
    const ggml_tensor& picture;
    const ggml_tensor& result;
    const int64_t pad_x, pad_y;
    const int64_t channels;
    const int64_t filter_count;
    const int64_t tiles_x, tiles_y;
    const int64_t tiles;  // of all pictures, row by row
    int64_t each_tiles;   // of a job
    int64_t each_filters;
    int64_t tile_jobs;
    int64_t filter_jobs;
    int64_t tile_stride;  // between two channels of patches
};

// Filters of f32, which ggml rounds nothing for, are left to plain sums.
bool takes(const ggml_tensor& node) {
    if (node.op != GGML_OP_CONV_2D || node.type != GGML_TYPE_F32 || !ggml_is_contiguous(&node)) {
        return false;
    }
    const ggml_tensor& filters = *node.src[0];
    const ggml_tensor& picture = *node.src[1];
    const auto param = [&](uint32_t i) { return ggml_get_op_params_i32(&node, i); };
    return filters.ne[0] == taps && filters.ne[1] == taps && param(0) == 1 && param(1) == 1 && param(4) == 1 &&
           param(5) == 1 && (filters.type == GGML_TYPE_F16 || filters.type == GGML_TYPE_BF16) &&
           ggml_is_contiguous(&filters) && picture.type == GGML_TYPE_F32 && picture.nb[0] == sizeof(float) &&
           Convolution(node, 1).is_faster();
}

void compute(const ggml_compute_params& params, const ggml_tensor& node) {
    const Convolution convolution(node, params.nth);
    float* const memory = thread_memory(params, convolution.bytes);
    jobs_compute(convolution.jobs, [&](int64_t job) { convolution.compute(job, memory); });
}

size_t work_size(const ggml_tensor& node, int threads) {
    // As many threads as are planned for, or fewer where some could not be started.
    return Convolution(node, 1).bytes * static_cast<size_t>(threads);
}

}  // namespace

const Kernel winograd = {takes, compute, work_size};

}  // namespace sdcpp::cpu
