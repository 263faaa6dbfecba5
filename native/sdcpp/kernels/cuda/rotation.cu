#include <algorithm>

#include "sdcpp/kernels/cuda/nodes.h"

namespace sdcpp::cuda {

namespace {

constexpr int threads = 128;
constexpr int most_depth = 128;

// Queries or keys of a head, a warp each: [depth] of [heads, tokens, batch] to [depth] of [tokens, heads, batch].
struct Heads {
    const char* data;
    const float4* angles;  // of each token and pair: what the first and the second value become of both
    const float* weights;  // of an RMS norm before; NULL: none
    float eps;
    int depth;
    uint3 heads, tokens;  // to divide by
    int64_t count;
    int64_t head_bytes, token_bytes, batch_bytes;
    bool scaled;
    float factor, summand;
};

// Sums up values of a warp, four a thread, in the order of ggml's reduction of a block with a value a thread.
__device__ float sum_as_block(float4 values) {
    for (const int offset : {4, 2, 1}) {
        values.x += __shfl_xor_sync(~0u, values.x, offset);
        values.y += __shfl_xor_sync(~0u, values.y, offset);
        values.z += __shfl_xor_sync(~0u, values.z, offset);
        values.w += __shfl_xor_sync(~0u, values.w, offset);
    }
    float sum = (values.x + values.z) + (values.y + values.w);
    sum += __shfl_xor_sync(~0u, sum, 16);
    return sum + __shfl_xor_sync(~0u, sum, 8);
}

template <typename T>
__global__ void __launch_bounds__(threads) rotate(const Heads from, T* result) {
    const int64_t head = static_cast<int64_t>(blockIdx.x) * (threads / 32) + threadIdx.x / 32;
    if (head >= from.count) {
        return;
    }
    // In the order of the source: a token's heads lie side by side there.
    const uint2 token = fast_div_modulo(static_cast<uint32_t>(head), from.heads);
    const uint2 batch = fast_div_modulo(token.x, from.tokens);
    const int at = threadIdx.x % 32 * 4;
    const bool there = at < from.depth;
    float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (there) {
        values = *reinterpret_cast<const float4*>(from.data + token.y * from.head_bytes + batch.y * from.token_bytes +
                                                  batch.x * from.batch_bytes + at * sizeof(float));
    }
    if (from.weights != nullptr) {
        const float squares = sum_as_block(
            make_float4(values.x * values.x, values.y * values.y, values.z * values.z, values.w * values.w));
        const float scale = rsqrtf(squares / from.depth + from.eps);
        if (there) {
            const float4 weights = *reinterpret_cast<const float4*>(from.weights + at);
            values.x = __fmul_rn(__fmul_rn(scale, values.x), weights.x);
            values.y = __fmul_rn(__fmul_rn(scale, values.y), weights.y);
            values.z = __fmul_rn(__fmul_rn(scale, values.z), weights.z);
            values.w = __fmul_rn(__fmul_rn(scale, values.w), weights.w);
        }
    }
    if (!there) {
        return;
    }
    const float4* const angles = from.angles + (static_cast<int64_t>(batch.y) * from.depth + at) / 2;
    const auto turned = [&](float a, float b, float of_a, float of_b) {
        const float value = __fadd_rn(__fmul_rn(a, of_a), __fmul_rn(b, of_b));
        return from.scaled ? fmaf(from.factor, value, from.summand) : value;
    };
    const float4 first = angles[0];
    const float4 second = angles[1];
    const float all[4] = {turned(values.x, values.y, first.x, first.y), turned(values.x, values.y, first.z, first.w),
                          turned(values.z, values.w, second.x, second.y),
                          turned(values.z, values.w, second.z, second.w)};
    T* const to =
        result + ((static_cast<int64_t>(batch.x) * from.heads.z + token.y) * from.tokens.z + batch.y) * from.depth + at;
    if constexpr (std::is_same_v<T, float>) {
        *reinterpret_cast<float4*>(to) = make_float4(all[0], all[1], all[2], all[3]);
    } else {
        const half2 halves[2] = {__floats2half2_rn(all[0], all[1]), __floats2half2_rn(all[2], all[3])};
        *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(halves);
    }
}

bool permutes(const ggml_tensor* tensor, int a, int b, int c, int d) {
    const auto axis = [&](int i) { return ggml_get_op_params_i32(tensor, i); };
    return tensor->op == GGML_OP_PERMUTE && axis(0) == a && axis(1) == b && axis(2) == c && axis(3) == d;
}

// Tells whether a tensor is the first or the second half of another.
bool is_half(const ggml_tensor* tensor, const ggml_tensor* of, int which) {
    return tensor->view_src == of && tensor->view_offs == ggml_nbytes(of) / 2 * which && ggml_is_contiguous(tensor) &&
           ggml_nelements(tensor) * 2 == ggml_nelements(of);
}

}  // namespace

int rotation(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first) {
    Run run(graph, first);
    const auto take = [&](ggml_op op, int uses) -> const ggml_tensor* {
        const ggml_tensor* const next = run.next();
        if (next == nullptr || next->op != op || (uses > 0 && uses_of(graph, next) != uses) ||
            (next->flags & GGML_TENSOR_FLAG_OUTPUT) != 0) {
            return nullptr;
        }
        run.take();
        return next;
    };
    const ggml_tensor* head = run.first();
    const ggml_tensor* norm = nullptr;
    const ggml_tensor* values = nullptr;
    if (head->op == GGML_OP_RMS_NORM && run.passes_on()) {
        norm = head;
        const ggml_tensor* const weighed = take(GGML_OP_MUL, 1);
        if (weighed == nullptr || weighed->src[0] != norm || !ggml_is_vector(weighed->src[1]) ||
            weighed->src[1]->type != GGML_TYPE_F32 || weighed->src[1]->ne[0] != norm->ne[0]) {
            return 0;
        }
        values = weighed;
        head = take(GGML_OP_CONT, 1);
    }
    if (head == nullptr || head->op != GGML_OP_CONT || !permutes(head->src[0], 0, 2, 1, 3)) {
        return 0;
    }
    if (norm != nullptr && (head->src[0]->src[0] != values || uses_of(graph, head->src[0]) != 1)) {
        return 0;
    }
    const ggml_tensor* const source = norm != nullptr ? norm->src[0] : head->src[0]->src[0];
    const ggml_tensor* const split = take(GGML_OP_CONT, 2);
    const ggml_tensor* const repeated = split != nullptr ? take(GGML_OP_REPEAT, 1) : nullptr;
    const ggml_tensor* const angles = repeated != nullptr ? take(GGML_OP_CONT, 2) : nullptr;
    const ggml_tensor* const product = angles != nullptr ? take(GGML_OP_MUL, 1) : nullptr;
    const ggml_tensor* const second_repeated = product != nullptr ? take(GGML_OP_REPEAT, 1) : nullptr;
    const ggml_tensor* const second_product = second_repeated != nullptr ? take(GGML_OP_MUL, 1) : nullptr;
    const ggml_tensor* const sum = second_product != nullptr ? take(GGML_OP_ADD, 0) : nullptr;
    if (sum == nullptr || uses_of(graph, head) != 1) {
        return 0;
    }
    const int64_t depth = source->ne[0];
    const int64_t heads = source->ne[1];
    const int64_t tokens = source->ne[2];
    const int64_t batch = source->ne[3];
    const ggml_tensor* const pairs = split->src[0]->src[0];
    const ggml_tensor* const given = angles->src[0]->src[0];
    const bool rotates = permutes(split->src[0], 3, 0, 1, 2) && unshaped(pairs) == head && uses_of(graph, pairs) == 1 &&
                         pairs->ne[0] == 2 && pairs->ne[1] == depth / 2 && pairs->ne[2] == tokens &&
                         permutes(angles->src[0], 3, 0, 1, 2) && given->type == GGML_TYPE_F32 &&
                         ggml_is_contiguous(given) && given->ne[0] == 2 && given->ne[1] == 2 &&
                         given->ne[2] == depth / 2 && given->ne[3] == tokens && is_half(repeated->src[0], split, 0) &&
                         is_half(second_repeated->src[0], split, 1) && product->src[0] == repeated &&
                         is_half(product->src[1], angles, 0) && second_product->src[0] == second_repeated &&
                         is_half(second_product->src[1], angles, 1) && sum->src[0] == product &&
                         sum->src[1] == second_product && ggml_nelements(sum) == ggml_nelements(source);
    const auto aligned = [](const ggml_tensor* tensor) {
        return reinterpret_cast<uintptr_t>(tensor->data) % 16 == 0 && tensor->nb[1] % 16 == 0 &&
               tensor->nb[2] % 16 == 0 && tensor->nb[3] % 16 == 0;
    };
    if (!rotates || source->type != GGML_TYPE_F32 || source->nb[0] != sizeof(float) || depth % 4 != 0 ||
        depth > most_depth || !aligned(source) || reinterpret_cast<uintptr_t>(given->data) % 16 != 0 ||
        ggml_nelements(source) >= (int64_t{1} << 31)) {
        return 0;
    }
    Heads from = {};
    from.data = static_cast<const char*>(source->data);
    from.angles = static_cast<const float4*>(given->data);
    from.weights = norm != nullptr ? static_cast<const float*>(values->src[1]->data) : nullptr;
    from.eps = norm != nullptr ? ggml_get_op_params_f32(norm, 0) : 0.0f;
    from.depth = static_cast<int>(depth);
    from.heads = init_fastdiv_values(static_cast<uint64_t>(heads));
    from.tokens = init_fastdiv_values(static_cast<uint64_t>(tokens));
    from.count = heads * tokens * batch;
    from.head_bytes = static_cast<int64_t>(source->nb[1]);
    from.token_bytes = static_cast<int64_t>(source->nb[2]);
    from.batch_bytes = static_cast<int64_t>(source->nb[3]);
    // Keys are scaled and rounded for attention.
    const ggml_tensor* next = run.passes_on() ? run.next() : nullptr;
    if (next != nullptr && next->op == GGML_OP_SCALE) {
        from.scaled = true;
        from.factor = ggml_get_op_params_f32(next, 0);
        from.summand = ggml_get_op_params_f32(next, 1);
        run.take();
        next = run.passes_on() ? run.next() : nullptr;
    }
    if (next != nullptr && next->op == GGML_OP_CPY && next->type == GGML_TYPE_F16 && ggml_is_contiguous(next) &&
        unshaped(next->src[0]) == run.last()) {
        run.take();
    }
    const ggml_tensor* const result = run.last();
    const cudaStream_t stream = context.stream();
    // What is read may be free by the time ggml would write this.
    ggml_cuda_pool_alloc<char> aside(context.pool());
    const size_t bytes = ggml_nbytes(result);
    const bool apart = share_bytes(result, source) || share_bytes(result, given);
    void* const to = apart ? aside.alloc(bytes) : result->data;
    const auto blocks = static_cast<unsigned>((from.count + threads / 32 - 1) / (threads / 32));
    if (result->type == GGML_TYPE_F16) {
        rotate<<<blocks, threads, 0, stream>>>(from, static_cast<half*>(to));
    } else {
        rotate<<<blocks, threads, 0, stream>>>(from, static_cast<float*>(to));
    }
    CUDA_CHECK(cudaGetLastError());
    if (apart) {
        CUDA_CHECK(cudaMemcpyAsync(result->data, to, bytes, cudaMemcpyDeviceToDevice, stream));
    }
    return run.count();
}

}  // namespace sdcpp::cuda
