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

bool takes(const ggml_tensor& node) {
    if (node.op != GGML_OP_CONV_2D || node.type != GGML_TYPE_F32) {
        return false;
    }
    const ggml_tensor& filters = *node.src[0];
    const ggml_tensor& picture = *node.src[1];
    return (filters.type == GGML_TYPE_F32 || filters.type == GGML_TYPE_F16 || filters.type == GGML_TYPE_BF16) &&
           ggml_is_contiguous(&filters) && picture.type == GGML_TYPE_F32 && picture.nb[0] == sizeof(float) &&
           ggml_is_contiguous(&node);
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
          dilation_y(ggml_get_op_params_i32(&node, 5)) {
        const auto* const ne = filters.ne;
        shape = {result.ne[0] * result.ne[1], ne[3], ne[0] * ne[1] * ne[2], result.ne[3]};
        if (filters.type == GGML_TYPE_F32) {
            shape.numbers = exact_for(shape.depth);
        }
    }

    void pack_rows(float* panel, int64_t batch, int64_t row, int count, int64_t depth, int deep) const override {
        const int64_t height = picture.ne[1];
        Run runs[block_rows];
        int run_count = 0;
        for (int done = 0; done < count; ++run_count) {
            Run& run = runs[run_count];
            run = {(row + done) % result.ne[0], (row + done) / result.ne[0], done, 0};
            run.count = static_cast<int>(std::min<int64_t>(count - done, result.ne[0] - run.x));
            done += run.count;
        }
        int64_t filter_x = depth % filters.ne[0];
        int64_t filter_y = depth / filters.ne[0] % filters.ne[1];
        int64_t channel = depth / (filters.ne[0] * filters.ne[1]);
        const char* const whole = static_cast<const char*>(picture.data) + batch * picture.nb[3];
        for (int k = 0; k < deep;) {
            // Of a row of taps the lines are the same.
            const int taps = static_cast<int>(std::min<int64_t>(filters.ne[0] - filter_x, deep - k));
            const char* const plane = whole + channel * picture.nb[2];
            for (int r = 0; r < run_count; ++r) {
                const Run& run = runs[r];
                const int64_t y = run.y * stride_y + filter_y * dilation_y - pad_y;
                const auto* const line =
                    y >= 0 && y < height ? reinterpret_cast<const float*>(plane + y * picture.nb[1]) : nullptr;
                int64_t x = run.x * stride_x + filter_x * dilation_x - pad_x;
                float* to = panel + run.begin;
                for (int t = 0; t < taps; ++t, to += block_rows, x += dilation_x) {
                    pack_line(to, line, x, run.count);
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
    // Packs what one tap reads of a line for so many pixels, from `x` on; NULL: the line is beyond the picture.
    void pack_line(float* to, const float* line, int64_t x, int count) const {
        const int64_t width = picture.ne[0];
        if (line == nullptr) {
            clear(to, count);
        } else if (stride_x != 1) {
            for (int i = 0; i < count; ++i) {
                const int64_t at = x + i * stride_x;
                to[i] = at >= 0 && at < width ? line[at] : 0.0f;
            }
        } else if (count == block_rows && x >= 0 && x + block_rows <= width) {
#pragma GCC unroll 8
            for (int v = 0; v < block_vectors; ++v) {
                store(to + v * lanes, load(line + x + v * lanes));
            }
        } else {
            const int64_t first = std::clamp<int64_t>(-x, 0, count);
            const int64_t last = std::clamp<int64_t>(width - x, first, count);
            copy(to, line + x, first, last, count);
        }
    }

    const ggml_tensor& filters;
    const ggml_tensor& picture;
    const ggml_tensor& result;
    const int64_t stride_x, stride_y;
    const int64_t pad_x, pad_y;
    const int64_t dilation_x, dilation_y;
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
