#include <algorithm>
#include <cstring>

#include "ggml-impl.h"
#include "sdcpp/kernels/cpu/nodes.h"
#include "sdcpp/kernels/cpu/product.h"

namespace sdcpp::cpu {

namespace {

// Pixels of the result that lie side by side in one of its rows.
struct Run {
    int64_t x;
    int64_t y;
    int begin;  // in the panel
    int count;
};

void clear(float* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        to[i] = 0.0f;
    }
}

// Copies a line from `first` to `last`, with zeros before and behind.
void copy(float* to, const float* line, int64_t first, int64_t last, int64_t count) {
#ifdef __AVX512F__
    const auto below = [](int64_t end) {
        return static_cast<__mmask16>((1u << std::clamp<int64_t>(end, 0, lanes)) - 1);
    };
    for (int64_t i = 0; i < count; i += lanes) {
        const auto inside = static_cast<__mmask16>(below(last - i) & ~below(first - i));
        _mm512_mask_storeu_ps(to + i, below(count - i), _mm512_maskz_loadu_ps(inside, line + i));
    }
#else
    clear(to, first);
    for (int64_t i = first; i < last; ++i) {
        to[i] = line[i];
    }
    clear(to + last, count - last);
#endif
}

// Where the windows of a panel read one tap of a plane, in floats; below zero: beyond the picture.
typedef int32_t Places[block_rows];

// Reads a number of a plane for each window, of so many numbers.
void gather(float* to, const float* plane, const Places& places, [[maybe_unused]] int64_t size) {
#ifdef __AVX512F__
    for (int v = 0; v < block_vectors; ++v) {
        const __m512i at = _mm512_loadu_si512(places + v * lanes);
        const __mmask16 inside = _mm512_cmpge_epi32_mask(at, _mm512_setzero_si512());
        if (size <= lanes) {
            const __m512 all = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << size) - 1), plane);
            _mm512_storeu_ps(to + v * lanes, _mm512_maskz_permutexvar_ps(inside, at, all));
        } else {
            _mm512_storeu_ps(to + v * lanes, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, at, plane, 4));
        }
    }
#else
    for (int i = 0; i < block_rows; ++i) {
        to[i] = places[i] >= 0 ? plane[places[i]] : 0.0f;
    }
#endif
}

bool takes(const ggml_tensor& node) {
    if (node.op != GGML_OP_CONV_2D || node.type != GGML_TYPE_F32) {
        return false;
    }
    const ggml_tensor& filters = *node.src[0];
    const ggml_tensor& picture = *node.src[1];
    return (filters.type == GGML_TYPE_F32 || filters.type == GGML_TYPE_F16 || filters.type == GGML_TYPE_BF16) &&
           ggml_is_contiguous(&filters) && picture.type == GGML_TYPE_F32 && picture.nb[0] == sizeof(float) &&
           picture.ne[0] * picture.ne[1] <= INT32_MAX && ggml_is_contiguous(&node);
}

// A convolution as a product of the windows of the picture (a row for each pixel of the result) and the filters (a
// column each): the windows are packed from the picture itself.
class Convolution : public Operands {
public:
    explicit Convolution(const ggml_tensor& node)
        : filters(*node.src[0]),
          picture(*node.src[1]),
          result(node),
          stride_x(ggml_get_op_params_i32(&node, 0)),
          stride_y(ggml_get_op_params_i32(&node, 1)),
          pad_x(ggml_get_op_params_i32(&node, 2)),
          pad_y(ggml_get_op_params_i32(&node, 3)),
          dilation_x(ggml_get_op_params_i32(&node, 4)),
          dilation_y(ggml_get_op_params_i32(&node, 5)),
          plane(picture.nb[1] == static_cast<size_t>(picture.ne[0]) * sizeof(float)) {
        const auto* const ne = filters.ne;
        // A filter of one pixel has no use for lines.
        const bool one =
            plane && ne[0] == 1 && ne[1] == 1 && stride_x == 1 && stride_y == 1 && pad_x == 0 && pad_y == 0;
        width = one ? picture.ne[0] * picture.ne[1] : picture.ne[0];
        height = one ? 1 : picture.ne[1];
        line = one ? width : result.ne[0];
        shape = {result.ne[0] * result.ne[1], ne[3], ne[0] * ne[1] * ne[2], result.ne[3]};
        if (filters.type == GGML_TYPE_F32) {
            shape.numbers = exact_for(shape.depth);
        }
    }

    void pack_rows(float* panel, int64_t batch, int64_t row, int count, int64_t depth, int deep) const override {
        if (plane && (stride_x != 1 || line < lanes)) {
            pack_gathered(panel, batch, row, count, depth, deep);
            return;
        }
        Run runs[block_rows];
        int run_count = 0;
        for (int done = 0; done < count; ++run_count) {
            Run& run = runs[run_count];
            run = {(row + done) % line, (row + done) / line, done, 0};
            run.count = static_cast<int>(std::min<int64_t>(count - done, line - run.x));
            done += run.count;
        }
        int64_t filter_x = depth % filters.ne[0];
        int64_t filter_y = depth / filters.ne[0] % filters.ne[1];
        int64_t channel = depth / (filters.ne[0] * filters.ne[1]);
        const char* const whole = static_cast<const char*>(picture.data) + batch * picture.nb[3];
        for (int k = 0; k < deep;) {
            // Of a row of taps the lines are the same.
            const int taps = static_cast<int>(std::min<int64_t>(filters.ne[0] - filter_x, deep - k));
            const char* const values = whole + channel * picture.nb[2];
            for (int r = 0; r < run_count; ++r) {
                const Run& run = runs[r];
                const int64_t y = run.y * stride_y + filter_y * dilation_y - pad_y;
                const auto* const from =
                    y >= 0 && y < height ? reinterpret_cast<const float*>(values + y * picture.nb[1]) : nullptr;
                int64_t x = run.x * stride_x + filter_x * dilation_x - pad_x;
                float* to = panel + run.begin;
                for (int t = 0; t < taps; ++t, to += block_rows, x += dilation_x) {
                    pack_line(to, from, x, run.count);
                }
            }
            for (int t = 0; count < block_rows && t < taps; ++t) {
                clear(panel + t * block_rows + count, block_rows - count);
            }
            panel += taps * block_rows;
            k += taps;
            filter_x = 0;
            if (++filter_y == filters.ne[1]) {
                filter_y = 0;
                ++channel;
            }
        }
    }

    void pack_column(float* packed, int64_t, int64_t column, int64_t depth, int deep) const override {
        const char* const filter = static_cast<const char*>(filters.data) + column * filters.nb[3];
        pack_memory_column(shape.numbers, packed, filters.type, filter, filters.nb[3], depth, deep);
    }

    float* column_of(int64_t batch, int64_t column) const override {
        return reinterpret_cast<float*>(static_cast<char*>(result.data) + batch * result.nb[3] + column * result.nb[2]);
    }

    Shape shape;

private:
    // Packs windows whose pixels do not lie side by side, or only a few of them: a tap of all channels at a time.
    void pack_gathered(float* panel, int64_t batch, int64_t row, int count, int64_t depth, int deep) const {
        int64_t columns[block_rows];
        int64_t lines[block_rows];
        for (int i = 0; i < count; ++i) {
            columns[i] = (row + i) % line * stride_x - pad_x;
            lines[i] = (row + i) / line * stride_y - pad_y;
        }
        const char* const whole = static_cast<const char*>(picture.data) + batch * picture.nb[3];
        const int64_t taps = filters.ne[0] * filters.ne[1];
        for (int64_t first = 0; first < std::min<int64_t>(taps, deep); ++first) {
            const int64_t tap = (depth + first) % taps;
            Places places;
            for (int i = 0; i < block_rows; ++i) {
                const int64_t x = i < count ? columns[i] + tap % filters.ne[0] * dilation_x : -1;
                const int64_t y = i < count ? lines[i] + tap / filters.ne[0] * dilation_y : -1;
                const bool inside = x >= 0 && x < width && y >= 0 && y < height;
                places[i] = inside ? static_cast<int32_t>(y * width + x) : -1;
            }
            for (int64_t k = first; k < deep; k += taps) {
                const char* const values = whole + (depth + k) / taps * picture.nb[2];
                gather(panel + k * block_rows, reinterpret_cast<const float*>(values), places, width * height);
            }
        }
    }

    // Packs what one tap reads of a line for so many pixels, from `x` on; NULL: the line is beyond the picture.
    void pack_line(float* to, const float* from, int64_t x, int count) const {
        if (from == nullptr) {
            clear(to, count);
        } else if (stride_x != 1) {
            for (int i = 0; i < count; ++i) {
                const int64_t at = x + i * stride_x;
                to[i] = at >= 0 && at < width ? from[at] : 0.0f;
            }
        } else if (count == block_rows && x >= 0 && x + block_rows <= width) {
#pragma GCC unroll 8
            for (int v = 0; v < block_vectors; ++v) {
                store(to + v * lanes, load(from + x + v * lanes));
            }
        } else {
            const int64_t first = std::clamp<int64_t>(-x, 0, count);
            const int64_t last = std::clamp<int64_t>(width - x, first, count);
            copy(to, from + x, first, last, count);
        }
    }

    const ggml_tensor& filters;
    const ggml_tensor& picture;
    const ggml_tensor& result;
    const int64_t stride_x, stride_y;
    const int64_t pad_x, pad_y;
    const int64_t dilation_x, dilation_y;
    const bool plane;       // the picture's lines lie one after another
    int64_t width, height;  // of the picture
    int64_t line;           // of the result
};

void compute(const ggml_compute_params& params, const ggml_tensor& node) {
    const Convolution product(node);
    product_compute(params, product.shape, product);
}

size_t work_size(const ggml_tensor& node, int threads) {
    return product_work_size(Convolution(node).shape, threads);
}

}  // namespace

const Kernel convolution = {takes, compute, work_size};

}  // namespace sdcpp::cpu
