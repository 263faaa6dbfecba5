#include "sdcpp/kernels/cuda/nodes.h"

namespace sdcpp::cuda {

namespace {

// ggml computes products with fewer columns without cuBLAS.
constexpr int64_t least_columns = 17;
constexpr int hopper = 900;

template <typename T>
__device__ T rounded(float value) {
    return static_cast<T>(value);
}

// Rounds an input, eight values a thread.
template <typename T>
__global__ void round_values(const float* values, T* rounded_values, int64_t count) {
    const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (i + 8 <= count) {
        const float4 a = *reinterpret_cast<const float4*>(values + i);
        const float4 b = *reinterpret_cast<const float4*>(values + i + 4);
        alignas(16) const T eight[8] = {rounded<T>(a.x), rounded<T>(a.y), rounded<T>(a.z), rounded<T>(a.w),
                                        rounded<T>(b.x), rounded<T>(b.y), rounded<T>(b.z), rounded<T>(b.w)};
        *reinterpret_cast<uint4*>(rounded_values + i) = *reinterpret_cast<const uint4*>(eight);
        return;
    }
    for (int64_t j = i; j < count; ++j) {
        rounded_values[j] = rounded<T>(values[j]);
    }
}

}  // namespace

ggml_type product_type(const ggml_backend_cuda_context& context, const ggml_tensor& node) {
    if (node.op != GGML_OP_MUL_MAT || node.type != GGML_TYPE_F32 || !ggml_is_contiguous(&node)) {
        return GGML_TYPE_COUNT;
    }
    const ggml_tensor& weights = *node.src[0];
    const ggml_tensor& input = *node.src[1];
    const int cc = ggml_cuda_info().devices[context.device].cc;
    // Where sums in f32 are slower than in f16, ggml's are in f16.
    const bool halves = weights.type == GGML_TYPE_F16 && ggml_get_op_params_i32(&node, 0) == GGML_PREC_DEFAULT &&
                        (cc == GGML_CUDA_CC_AMPERE || (cc >= hopper && cc < GGML_CUDA_CC_BLACKWELL));
    const bool takes = (halves || weights.type == GGML_TYPE_BF16) && ggml_is_contiguous(&weights) &&
                       weights.ne[2] * weights.ne[3] == 1 && weights.extra == nullptr && input.type == GGML_TYPE_F32 &&
                       ggml_is_contiguous(&input) && ggml_nrows(&input) >= least_columns;
    return takes ? weights.type : GGML_TYPE_COUNT;
}

int matrix_product(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first) {
    const ggml_tensor& node = *graph->nodes[first];
    const ggml_type type = product_type(context, node);
    if (type == GGML_TYPE_COUNT) {
        return 0;
    }
    const ggml_tensor& weights = *node.src[0];
    const ggml_tensor& input = *node.src[1];
    const cudaStream_t stream = context.stream();
    Kept& kept = kept_of(context);
    const void* values = kept.find(&input, type);
    if (values == nullptr) {
        void* const made = kept.make(context, &input, type, first);
        const int64_t count = ggml_nelements(&input);
        const auto blocks = static_cast<unsigned>((count + 256 * 8 - 1) / (256 * 8));
        const auto* const from = static_cast<const float*>(input.data);
        if (type == GGML_TYPE_F16) {
            round_values<<<blocks, 256, 0, stream>>>(from, static_cast<half*>(made), count);
        } else {
            round_values<<<blocks, 256, 0, stream>>>(from, static_cast<nv_bfloat16*>(made), count);
        }
        CUDA_CHECK(cudaGetLastError());
        values = made;
    }
    const auto depth = static_cast<int>(weights.ne[0]);
    const auto rows = static_cast<int>(weights.ne[1]);
    const cudaDataType_t kind = type == GGML_TYPE_F16 ? CUDA_R_16F : CUDA_R_16BF;
    const float one = 1.0f;
    const float zero = 0.0f;
    CUBLAS_CHECK(cublasSetStream(context.cublas_handle(), stream));
    CUBLAS_CHECK(cublasGemmEx(context.cublas_handle(), CUBLAS_OP_T, CUBLAS_OP_N, rows,
                              static_cast<int>(ggml_nrows(&input)), depth, &one, weights.data, kind, depth, values,
                              kind, depth, &zero, node.data, CUDA_R_32F, rows, CUBLAS_COMPUTE_32F,
                              CUBLAS_GEMM_DEFAULT_TENSOR_OP));
    return 1;
}

}  // namespace sdcpp::cuda
