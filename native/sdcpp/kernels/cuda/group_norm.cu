#include <algorithm>

#include "sdcpp/kernels/cuda/group_norm.h"

namespace sdcpp::cuda {

namespace {

constexpr int threads = 512;
// Values that a block sums up, so that the groups of large pictures are summed up by more blocks than there are groups.
constexpr int64_t block_values = 1 << 15;

// What is known of some of a group's values: their mean, and the sum of the squares of their distances from it.
struct Moments {
    float count, mean, squares;
};

// Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
__device__ Moments together(const Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    if (count == 0.0f) {
        return a;
    }
    const float apart = b.mean - a.mean;
    const float share = b.count / count;
    return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}

__device__ Moments block_together(Moments value) {
    __shared__ Moments of_warps[threads / 32];
    const auto warp_together = [](Moments sum) {
        for (int offset = 16; offset > 0; offset /= 2) {
            sum = together(sum, {__shfl_down_sync(~0u, sum.count, offset), __shfl_down_sync(~0u, sum.mean, offset),
                                 __shfl_down_sync(~0u, sum.squares, offset)});
        }
        return sum;
    };
    value = warp_together(value);
    if (threadIdx.x % 32 == 0) {
        of_warps[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = threadIdx.x < threads / 32 ? of_warps[threadIdx.x] : Moments{0.0f, 0.0f, 0.0f};
    return warp_together(value);
}

// Sums up a block's part of a group: grid.x parts of grid.y groups, whose values lie side by side.
__global__ void __launch_bounds__(threads) sum_parts(const float* values, Moments* parts, int64_t group_values) {
    const float* const group = values + blockIdx.y * group_values;
    const int64_t begin = blockIdx.x * block_values;
    const int64_t end = min(begin + block_values, group_values);
    // The sum first, then the squares of the distances from the mean: the values are in the cache by then.
    float sum = 0.0f;
    for (int64_t i = begin + threadIdx.x; i < end; i += threads) {
        sum += group[i];
    }
    const auto count = static_cast<float>((end - begin - threadIdx.x + threads - 1) / threads);
    Moments moments = {0.0f, 0.0f, 0.0f};
    if (begin + threadIdx.x < end) {
        moments = {count, sum / count, 0.0f};
        for (int64_t i = begin + threadIdx.x; i < end; i += threads) {
            const float apart = group[i] - moments.mean;
            moments.squares += apart * apart;
        }
    }
    moments = block_together(moments);
    if (threadIdx.x == 0) {
        parts[blockIdx.y * gridDim.x + blockIdx.x] = moments;
    }
}

// Makes mean and scale of each group. A block a group.
__global__ void __launch_bounds__(threads) make_groups(const Moments* parts, float2* groups, int count, float eps) {
    Moments moments = {0.0f, 0.0f, 0.0f};
    for (int i = threadIdx.x; i < count; i += threads) {
        moments = together(moments, parts[blockIdx.x * count + i]);
    }
    moments = block_together(moments);
    if (threadIdx.x == 0) {
        groups[blockIdx.x] = make_float2(moments.mean, rsqrtf(moments.squares / moments.count + eps));
    }
}

// Norms planes of pixels: grid.y channels of all pictures.
template <typename T>
__global__ void norm_planes(const T* values, T* result, int64_t pixels, int channels, Norm norm) {
    const int plane = blockIdx.y;
    const int channel = plane % channels;
    const float2 group = norm.groups[plane / channels * norm.group_count + fastdiv(channel, norm.group_channels)];
    const float factor = norm.factor != nullptr ? norm.factor[channel] : 1.0f;
    const float summand = norm.summand != nullptr ? norm.summand[channel] : 0.0f;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= pixels) {
        return;
    }
    T value = values[plane * pixels + i];
    if constexpr (std::is_same_v<T, float4>) {
        value.x = normed(value.x, group, factor, summand, norm);
        value.y = normed(value.y, group, factor, summand, norm);
        value.z = normed(value.z, group, factor, summand, norm);
        value.w = normed(value.w, group, factor, summand, norm);
    } else {
        value = normed(value, group, factor, summand, norm);
    }
    result[plane * pixels + i] = value;
}

// Tells whether a tensor has a number for each channel of another, and returns the numbers.
const float* of_channels(const ggml_tensor& numbers, const ggml_tensor& picture) {
    const bool fits = numbers.type == GGML_TYPE_F32 && ggml_is_contiguous(&numbers) && numbers.ne[0] == 1 &&
                      numbers.ne[1] == 1 && numbers.ne[2] == picture.ne[2] && numbers.ne[3] == 1;
    return fits ? static_cast<const float*>(numbers.data) : nullptr;
}

// Takes an operation on the values of the last node and a number a channel.
const float* take_channels(Run& run, ggml_op op, const ggml_tensor& picture) {
    const ggml_tensor* const next = run.passes_on() ? run.next() : nullptr;
    if (next == nullptr || next->op != op || next->src[0] != run.last() || !ggml_are_same_shape(next, &picture)) {
        return nullptr;
    }
    const float* const numbers = of_channels(*next->src[1], picture);
    if (numbers != nullptr) {
        run.take();
    }
    return numbers;
}

}  // namespace

void make_norm(ggml_backend_cuda_context& context, const ggml_tensor& picture, int group_count, float eps,
               ggml_cuda_pool_alloc<float2>& groups, Norm& norm) {
    const int group_channels = static_cast<int>(picture.ne[2]) / group_count;
    const int64_t group_values = picture.ne[0] * picture.ne[1] * group_channels;
    const int count = group_count * static_cast<int>(picture.ne[3]);
    const int parts = static_cast<int>((group_values + block_values - 1) / block_values);
    norm.group_count = group_count;
    norm.group_channels = init_fastdiv_values(static_cast<uint64_t>(group_channels));
    norm.groups = groups.alloc(context.pool(), static_cast<size_t>(count));
    ggml_cuda_pool_alloc<Moments> of_parts(context.pool(), static_cast<size_t>(count) * parts);
    sum_parts<<<dim3(parts, count), threads, 0, context.stream()>>>(static_cast<const float*>(picture.data),
                                                                    of_parts.get(), group_values);
    make_groups<<<count, threads, 0, context.stream()>>>(of_parts.get(), groups.get(), parts, eps);
    CUDA_CHECK(cudaGetLastError());
}

int group_norm(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first) {
    Run run(graph, first);
    const ggml_tensor& node = *run.first();
    if (node.op != GGML_OP_GROUP_NORM || node.type != GGML_TYPE_F32 || !ggml_is_contiguous(&node)) {
        return 0;
    }
    const ggml_tensor& picture = *node.src[0];
    const int channels = static_cast<int>(picture.ne[2]);
    const int group_count = ggml_get_op_params_i32(&node, 0);
    const int64_t planes = channels * picture.ne[3];
    if (picture.type != GGML_TYPE_F32 || !ggml_is_contiguous(&picture) || channels % group_count != 0 ||
        planes > 65535) {  // of a grid
        return 0;
    }
    Norm norm;
    norm.factor = take_channels(run, GGML_OP_MUL, picture);
    norm.summand = norm.factor != nullptr ? take_channels(run, GGML_OP_ADD, picture) : nullptr;
    const ggml_tensor* const next = run.passes_on() ? run.next() : nullptr;
    if (next != nullptr && next->op == GGML_OP_UNARY && ggml_get_unary_op(next) == GGML_UNARY_OP_SILU &&
        next->src[0] == run.last() && ggml_is_contiguous(next)) {
        norm.silu = true;
        run.take();
    }
    ggml_cuda_pool_alloc<float2> groups;
    make_norm(context, picture, group_count, ggml_get_op_params_f32(&node, 1), groups, norm);

    const int64_t pixels = picture.ne[0] * picture.ne[1];
    const auto* const values = static_cast<const float*>(picture.data);
    auto* const result = static_cast<float*>(run.last()->data);
    const auto launch = [&](auto* from, auto* to, int64_t count) {
        const dim3 grid(static_cast<unsigned>((count + 255) / 256), static_cast<unsigned>(planes));
        norm_planes<<<grid, 256, 0, context.stream()>>>(from, to, count, channels, norm);
    };
    if (pixels % 4 == 0) {
        launch(reinterpret_cast<const float4*>(values), reinterpret_cast<float4*>(result), pixels / 4);
    } else {
        launch(values, result, pixels);
    }
    CUDA_CHECK(cudaGetLastError());
    return run.count();
}

}  // namespace sdcpp::cuda
