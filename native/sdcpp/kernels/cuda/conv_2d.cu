#include <algorithm>
#include <limits>

#include "sdcpp/kernels/conv_2d_params.h"
#include "sdcpp/kernels/cuda/conv_2d_hopper.h"
#include "sdcpp/kernels/cuda/conv_2d_product.cuh"
#include "sdcpp/kernels/cuda/group_norm.h"

namespace sdcpp::cuda {

namespace {

constexpr auto staged_bytes = static_cast<int64_t>(conv_2d_staged_bytes);
// Shared memory of a block with which tiles of 64 channels leave room for a second one.
constexpr size_t deep_bytes = 160 << 10;
constexpr int stage_pixels = 32;
constexpr int stage_channels = 64;
constexpr int stage_threads = 256;

// Writes the filters as [filter][tap][channel], with zeros for channels that there are not. A block a filter.
template <typename T>
__global__ void pack_filters(const T* filters, half* packed, int taps, int channels, int padded) {
    const T* const from = filters + static_cast<int64_t>(blockIdx.x) * taps * channels;
    half* const to = packed + static_cast<int64_t>(blockIdx.x) * taps * padded;
    for (int channel = threadIdx.x; channel < padded; channel += blockDim.x) {
#pragma unroll 9
        for (int tap = 0; tap < taps; ++tap) {
            const float value = channel < channels ? static_cast<float>(from[channel * taps + tap]) : 0.0f;
            to[tap * padded + channel] = __float2half_rn(value);
        }
    }
}

// Writes rows of a picture as [pixel][channel] in halves, with zeros for channels that there are not, and normed.
__global__ void __launch_bounds__(stage_threads)
    stage_picture(const char* picture, half* staged, int width, int pixels, int first_row, int channels, int padded,
                  int64_t row_bytes, int64_t plane_bytes, Norm norm) {
    __shared__ half2 tile[stage_pixels][stage_channels / 2 + 1];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int first_pixel = blockIdx.x * stage_pixels;
    const int first_channel = blockIdx.y * stage_channels;
    const int pixel = first_pixel + lane;
    const int64_t at = static_cast<int64_t>(first_row + pixel / width) * row_bytes + pixel % width * sizeof(float);
#pragma unroll
    for (int pair = warp; pair < stage_channels / 2; pair += stage_threads / 32) {
        float values[2] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int channel = first_channel + pair * 2 + i;
            if (channel >= channels || pixel >= pixels) {
                continue;
            }
            float value = *reinterpret_cast<const float*>(picture + channel * plane_bytes + at);
            if (norm.groups != nullptr) {
                const float factor = norm.factor != nullptr ? norm.factor[channel] : 1.0f;
                const float summand = norm.summand != nullptr ? norm.summand[channel] : 0.0f;
                value = normed(value, norm.groups[fastdiv(channel, norm.group_channels)], factor, summand, norm);
            }
            values[i] = value;
        }
        tile[lane][pair] = __floats2half2_rn(values[0], values[1]);
    }
    __syncthreads();
    const int channel = first_channel + lane * 2;
    for (int i = warp; i < stage_pixels && first_pixel + i < pixels && channel < padded; i += stage_threads / 32) {
        *reinterpret_cast<half2*>(staged + static_cast<int64_t>(first_pixel + i) * padded + channel) = tile[i][lane];
    }
}

template <int depth, int warps_down, int down, int right>
void launch_product(const dim3& grid, cudaStream_t stream, const half* filters, const half* picture, float* result,
                    float* parts, const Part& part, const Epilogue& epilogue) {
    constexpr int bytes = stages * (warps_down * down * 16 + block_pixels) * depth * static_cast<int>(sizeof(half));
    const auto kernel = convolution_product<depth, warps_down, down, right>;
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<grid, product_threads, bytes, stream>>>(filters, picture, result, parts, part, epilogue);
}

// Returns in how many splits of its depth a product is done soonest: more keep all multiprocessors busy, but their sums
// are written and read. The same for one shape on one device. The times are those of an H100.
int splits_of(int tiles, int blocks, double block_seconds, int64_t sums, int room) {
    constexpr double sum_seconds = 8 / 2.5e12;
    constexpr double launch_seconds = 3e-6;
    int best = 1;
    double least = std::numeric_limits<double>::infinity();
    for (int splits = 1; splits <= std::min(16, std::max(1, blocks / 4)); ++splits) {
        const int waves = (tiles * splits + room - 1) / room;
        const double seconds = waves * ((blocks + splits - 1) / splits) * block_seconds +
                               (splits > 1 ? launch_seconds + splits * static_cast<double>(sums) * sum_seconds : 0.0);
        if (seconds < least && (splits == 1 || splits * sums * static_cast<int64_t>(sizeof(float)) <=
                                                   static_cast<int64_t>(conv_2d_sum_bytes))) {
            least = seconds;
            best = splits;
        }
    }
    return best;
}

// Convolves a part.
void launch(ggml_backend_cuda_context& context, const half* filters, const half* picture, float* result, Part part,
            const Epilogue& epilogue) {
    const auto& device = ggml_cuda_info().devices[context.device];
    const bool deep = part.channels % 64 == 0 && device.smpbo >= deep_bytes;
    const int hopper = hopper_filters(context.device, part);
    const int block_filters = hopper != 0 ? hopper : part.filters > 64 ? 128 : part.filters > 32 ? 64 : 32;
    const int across = (part.filters + block_filters - 1) / block_filters;
    const int along = (part.pixels + block_pixels - 1) / block_pixels;
    const int blocks = part.depth / (deep ? 64 : 32);
    const int64_t count = static_cast<int64_t>(part.filters) * part.pixels;
    int splits = splits_of(across * along, blocks, hopper != 0 ? 0.5e-6 : 0.8e-6, count, 2 * device.nsm);
    part.split_blocks = (blocks + splits - 1) / splits;
    splits = (blocks + part.split_blocks - 1) / part.split_blocks;
    const cudaStream_t stream = context.stream();
    ggml_cuda_pool_alloc<float> parts(context.pool());
    if (splits > 1) {
        parts.alloc(static_cast<size_t>(splits * count));
    }
    const dim3 grid(across, along, splits);
    if (hopper != 0) {
        hopper_product(hopper, grid, stream, filters, picture, result, parts.get(), part, epilogue);
    } else {
        const auto product = deep ? (block_filters == 128  ? launch_product<64, 2, 4, 4>
                                     : block_filters == 64 ? launch_product<64, 1, 4, 2>
                                                           : launch_product<64, 1, 2, 2>)
                                  : (block_filters == 128  ? launch_product<32, 2, 4, 4>
                                     : block_filters == 64 ? launch_product<32, 1, 4, 2>
                                                           : launch_product<32, 1, 2, 2>);
        product(grid, stream, filters, picture, result, parts.get(), part, epilogue);
    }
    CUDA_CHECK(cudaGetLastError());
    if (splits > 1) {
        const auto threads = 256;
        convolution_sum<<<static_cast<unsigned>((count + threads - 1) / threads), threads, 0, stream>>>(
            parts.get(), splits, result, part, init_fastdiv_values(static_cast<uint64_t>(part.pixels)), epilogue);
        CUDA_CHECK(cudaGetLastError());
    }
}

// Takes the summand of a convolution, and the scales and sums that follow it.
Epilogue take_epilogue(Run& run) {
    const ggml_tensor& convolution = *run.last();
    Epilogue epilogue;
    if (const ggml_tensor* const summand = convolution.src[conv_2d_summand]) {
        epilogue.steps[epilogue.count++] = {Epilogue::Kind::pixel, static_cast<const float*>(summand->data),
                                            static_cast<int64_t>(summand->nb[3] / sizeof(float)), 0.0f, 0.0f};
    }
    while (epilogue.count < Epilogue::most && run.passes_on()) {
        const ggml_tensor* const from = run.last();
        const ggml_tensor* const next = run.next();
        Epilogue::Step step = {};
        if (next->type != GGML_TYPE_F32 || !ggml_are_same_shape(next, &convolution) || !ggml_is_contiguous(next)) {
            break;
        }
        if (next->op == GGML_OP_SCALE && next->src[0] == from) {
            step = {Epilogue::Kind::scale, nullptr, 0, ggml_get_op_params_f32(next, 0),
                    ggml_get_op_params_f32(next, 1)};
        } else if (next->op == GGML_OP_ADD && (next->src[0] == from || next->src[1] == from)) {
            const ggml_tensor* const other = next->src[next->src[0] == from ? 1 : 0];
            const bool channels = other->ne[0] == 1 && other->ne[1] == 1 && other->ne[2] == convolution.ne[2] &&
                                  (other->ne[3] == 1 || other->ne[3] == convolution.ne[3]);
            const bool pixels = ggml_are_same_shape(other, &convolution);
            if (other->type != GGML_TYPE_F32 || !ggml_is_contiguous(other) || (!channels && !pixels)) {
                break;
            }
            const auto kind = pixels ? Epilogue::Kind::pixel : Epilogue::Kind::channel;
            const int64_t picture = other->ne[3] > 1 ? static_cast<int64_t>(other->nb[3] / sizeof(float)) : 0;
            step = {kind, static_cast<const float*>(other->data), picture, 0.0f, 0.0f};
        } else {
            break;
        }
        // What is still read must not be written: windows, filters, and numbers but where they are summed up
        // themselves.
        if (run.overlaps(next)) {
            break;
        }
        epilogue.steps[epilogue.count++] = step;
        run.take();
    }
    return epilogue;
}

bool takes(const ggml_tensor& node) {
    if (node.op != GGML_OP_CONV_2D || node.type != GGML_TYPE_F32 || !ggml_is_contiguous(&node)) {
        return false;
    }
    const ggml_tensor& filters = *node.src[0];
    const ggml_tensor& picture = *node.src[1];
    return (filters.type == GGML_TYPE_F16 || filters.type == GGML_TYPE_BF16 || filters.type == GGML_TYPE_F32) &&
           ggml_is_contiguous(&filters) && filters.ne[0] * filters.ne[1] <= conv_2d_taps &&
           picture.type == GGML_TYPE_F32 && picture.nb[0] == sizeof(float) && node.ne[0] * node.ne[1] < (1 << 30);
}

}  // namespace

int convolution(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first) {
    Run run(graph, first);
    const ggml_tensor& node = *run.first();
    if (!takes(node)) {
        return 0;
    }
    const ggml_tensor& filters = *node.src[0];
    const ggml_tensor& picture = *node.src[1];
    Epilogue epilogue = take_epilogue(run);
    auto* result = static_cast<float*>(run.last()->data);

    const auto param = [&](int i) { return ggml_get_op_params_i32(&node, i); };
    const int taps_y = static_cast<int>(filters.ne[1]);
    const int taps = static_cast<int>(filters.ne[0]) * taps_y;
    const int channels = static_cast<int>(filters.ne[2]);
    const int out_height = static_cast<int>(node.ne[1]);
    Part part = {};
    part.channels = GGML_PAD(channels, conv_2d_channels);
    part.filters = static_cast<int>(filters.ne[3]);
    part.depth = taps * part.channels;
    part.plane = static_cast<int>(node.ne[0] * node.ne[1]);
    part.out_width = init_fastdiv_values(static_cast<uint64_t>(node.ne[0]));
    part.width = static_cast<int>(picture.ne[0]);
    part.height = static_cast<int>(picture.ne[1]);
    part.taps_x = static_cast<int>(filters.ne[0]);
    part.stride_x = param(0), part.stride_y = param(1);
    part.pad_x = param(2), part.pad_y = param(3);
    part.dilation_x = param(4), part.dilation_y = param(5);
    part.doublings = param(conv_2d_doublings);
    Norm norm;
    ggml_cuda_pool_alloc<float2> groups;
    if (const int count = param(conv_2d_groups); count != 0) {
        norm.factor = static_cast<const float*>(node.src[2]->data);
        norm.summand = static_cast<const float*>(node.src[3]->data);
        norm.silu = true;
        make_norm(context, picture, count, ggml_get_op_params_f32(&node, conv_2d_eps), groups, norm);
    }

    const cudaStream_t stream = context.stream();
    ggml_cuda_pool_alloc<half> packed(context.pool());
    const half* packed_filters = static_cast<const half*>(filters.data);
    if (taps != 1 || part.channels != channels || filters.type != GGML_TYPE_F16) {
        packed_filters = packed.alloc(static_cast<size_t>(part.filters) * part.depth);
        const auto pack = [&](auto* from) {
            pack_filters<<<part.filters, stage_threads, 0, stream>>>(from, packed.get(), taps, channels, part.channels);
        };
        filters.type == GGML_TYPE_F16    ? pack(static_cast<const half*>(filters.data))
        : filters.type == GGML_TYPE_BF16 ? pack(static_cast<const nv_bfloat16*>(filters.data))
                                         : pack(static_cast<const float*>(filters.data));
        CUDA_CHECK(cudaGetLastError());
    }

    // How many rows of the result are made at once, and the rows of the picture that they read.
    const int reach = (taps_y - 1) * part.dilation_y + 1;
    const int64_t row_bytes = static_cast<int64_t>(part.width) * part.channels * sizeof(half);
    const int64_t at_once = (((staged_bytes / row_bytes) << part.doublings) - reach) / part.stride_y;
    const int rows = static_cast<int>(std::clamp<int64_t>(at_once, 1, out_height));
    const int most_rows = std::min((((rows - 1) * part.stride_y + reach) >> part.doublings) + 2, part.height);
    ggml_cuda_pool_alloc<half> staged(context.pool(), static_cast<size_t>(most_rows * row_bytes) / sizeof(half));
    for (int64_t batch = 0; batch < node.ne[3]; ++batch) {
        const char* const from = static_cast<const char*>(picture.data) + batch * picture.nb[3];
        for (int y = 0; y < out_height; y += rows) {
            const int count = std::min(rows, out_height - y);
            const int begin = y * part.stride_y - part.pad_y;
            const int end = begin + (count - 1) * part.stride_y + reach;
            part.first_row = std::clamp(begin >> part.doublings, 0, part.height - 1);
            const int last_row = std::clamp((end - 1) >> part.doublings, part.first_row, part.height - 1);
            const int pixels = (last_row + 1 - part.first_row) * part.width;
            const dim3 grid((pixels + stage_pixels - 1) / stage_pixels,
                            (part.channels + stage_channels - 1) / stage_channels);
            stage_picture<<<grid, stage_threads, 0, stream>>>(from, staged.get(), part.width, pixels, part.first_row,
                                                              channels, part.channels, picture.nb[1], picture.nb[2],
                                                              norm);
            CUDA_CHECK(cudaGetLastError());
            part.first_pixel = y * static_cast<int>(node.ne[0]);
            part.pixels = count * static_cast<int>(node.ne[0]);
            launch(context, packed_filters, staged.get(), result, part, epilogue);
        }
        if (norm.groups != nullptr) {
            norm.groups += norm.group_count;
        }
        result += static_cast<int64_t>(part.filters) * part.plane;
        epilogue.next_picture();
    }
    return run.count();
}

}  // namespace sdcpp::cuda
