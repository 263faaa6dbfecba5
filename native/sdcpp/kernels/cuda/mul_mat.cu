#include <cublasLt.h>

#include <map>
#include <memory>
#include <tuple>

#include "sdcpp/kernels/cuda/nodes.h"

namespace sdcpp::cuda {

struct Products {
    // By rows, columns and depth, type, and whether there are a bias and a summand. Without a value: none is known.
    using Shape = std::tuple<int, int, int, ggml_type, bool, bool>;
    std::map<Shape, std::shared_ptr<const cublasLtMatmulHeuristicResult_t>> known;
};

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

// What is done to a product's sums before they are stored.
struct Ending {
    const ggml_tensor* bias = nullptr;     // a value for each row of the weights; NULL: none
    const ggml_tensor* summand = nullptr;  // of the result's shape; NULL: none
    const ggml_tensor* result = nullptr;
};

// Takes the nodes that a product can do itself: rounding for attention, or sums with a bias and what goes past it.
Ending take_ending(Run& run, ggml_type type) {
    Ending ending;
    ending.result = run.first();
    const auto next = [&](ggml_op op) -> const ggml_tensor* {
        const ggml_tensor* const node = run.passes_on() ? run.next() : nullptr;
        return node != nullptr && node->op == op && ggml_is_contiguous(node) &&
                       reinterpret_cast<uintptr_t>(node->data) % 16 == 0
                   ? node
                   : nullptr;
    };
    const auto is_plain = [](const ggml_tensor* tensor) {
        return tensor->type == GGML_TYPE_F32 && ggml_is_contiguous(tensor) &&
               reinterpret_cast<uintptr_t>(tensor->data) % 16 == 0;
    };
    const ggml_tensor* node = next(GGML_OP_CPY);
    if (node != nullptr) {
        if (type == GGML_TYPE_F16 && node->type == type && unshaped(node->src[0]) == run.last()) {
            run.take();
            ending.result = node;
        }
        return ending;
    }
    node = next(GGML_OP_ADD);
    if (node != nullptr && is_plain(node->src[1]) && ggml_is_vector(node->src[1]) &&
        node->src[1]->ne[0] == run.first()->ne[0] && node->ne[0] == run.first()->ne[0] && ggml_nrows(node) > 1) {
        ending.bias = node->src[1];
        ending.result = node;
        run.take();
        node = next(GGML_OP_ADD);
    }
    if (node != nullptr) {
        const bool first = unshaped(node->src[0]) == run.last();
        const ggml_tensor* const other = node->src[first ? 1 : 0];
        const bool apart = other->data == node->data || !share_bytes(other, node);
        if (apart && is_plain(other) && ggml_are_same_shape(other, node) &&
            ggml_are_same_shape(node->src[first ? 0 : 1], node)) {
            ending.summand = other;
            ending.result = node;
            run.take();
        }
    }
    return ending;
}

// Tells whether what comes next reads a product as the two halves of a gated layer.
bool is_gated(ggml_backend_cuda_context& context, Run run) {
    const ggml_tensor* const next = run.passes_on() ? run.next() : nullptr;
    if (next == nullptr || next->op != GGML_OP_ADD || next->src[0] != run.first()) {
        return false;
    }
    run.take();
    return reads_halves(context, run.graph(), run.end() - 1);
}

template <typename T, cublasStatus_t (*destroy)(T*)>
struct Destroy {
    void operator()(T* object) const { destroy(object); }
};
template <typename T, cublasStatus_t (*destroy)(T*)>
using Owned = std::unique_ptr<T, Destroy<T, destroy>>;
using Layout = Owned<cublasLtMatrixLayoutOpaque_t, cublasLtMatrixLayoutDestroy>;

Layout layout(cudaDataType_t kind, int rows, int columns) {
    cublasLtMatrixLayout_t made = nullptr;
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&made, kind, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns),
                                            rows));
    return Layout(made);
}

// A product whose sums are added to. Returns whether there is a kernel for it; what there is depends on the shape alone.
bool product_and_sums(ggml_backend_cuda_context& context, const ggml_tensor& weights, const void* values, int columns,
                      const Ending& ending) {
    const auto depth = static_cast<int>(weights.ne[0]);
    const auto rows = static_cast<int>(weights.ne[1]);
    const cudaDataType_t kind = weights.type == GGML_TYPE_F16 ? CUDA_R_16F : CUDA_R_16BF;
    cublasLtMatmulDesc_t made = nullptr;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const Owned<cublasLtMatmulDescOpaque_t, cublasLtMatmulDescDestroy> product(made);
    const auto set = [&](cublasLtMatmulDescAttributes_t what, const auto& value) {
        CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(made, what, &value, sizeof(value)));
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (ending.bias != nullptr) {
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
        set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, ending.bias->data);
    }
    const Layout a = layout(kind, depth, rows);
    const Layout b = layout(kind, depth, columns);
    const Layout c = layout(CUDA_R_32F, rows, columns);
    // Handles of cuBLAS are handles of cuBLASLt, too, by its documentation.
    const auto handle = reinterpret_cast<cublasLtHandle_t>(context.cublas_handle());

    auto& products = kept_of(context).products;
    if (products == nullptr) {
        products = std::make_shared<Products>();
    }
    const Products::Shape shape(rows, columns, depth, weights.type, ending.bias != nullptr, ending.summand != nullptr);
    const auto found = products->known.try_emplace(shape);
    auto& algorithm = found.first->second;
    if (found.second) {
        cublasLtMatmulPreference_t given = nullptr;
        CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&given));
        const Owned<cublasLtMatmulPreferenceOpaque_t, cublasLtMatmulPreferenceDestroy> preference(given);
        const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
            CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(given, what, &value, sizeof(value)));
        };
        // With memory for sums of parts of the depth it is half a per cent faster.
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{0});
        for (const auto which :
             {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
              CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
            prefer(which, uint32_t{16});
        }
        cublasLtMatmulHeuristicResult_t best = {};
        int count = 0;
        const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, made, a.get(), b.get(), c.get(), c.get(),
                                                                     given, 1, &best, &count);
        if (status == CUBLAS_STATUS_SUCCESS && count == 1) {
            algorithm = std::make_shared<const cublasLtMatmulHeuristicResult_t>(best);
        }
    }
    if (algorithm == nullptr) {
        return false;
    }
    const float one = 1.0f;
    const float others = ending.summand != nullptr ? 1.0f : 0.0f;
    void* const result = ending.result->data;
    CUBLAS_CHECK(cublasLtMatmul(handle, made, &one, weights.data, a.get(), values, b.get(), &others,
                                ending.summand != nullptr ? ending.summand->data : result, c.get(), result, c.get(),
                                &algorithm->algo, nullptr, 0, context.stream()));
    return true;
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
    const auto columns = static_cast<int>(ggml_nrows(&input));
    Run run(graph, first);
    kept.in_halves = type == GGML_TYPE_F16 && is_gated(context, run) ? &node : nullptr;
    const Ending ending = kept.in_halves == nullptr ? take_ending(run, type) : Ending{nullptr, nullptr, &node};
    if ((ending.bias != nullptr || ending.summand != nullptr) &&
        product_and_sums(context, weights, values, columns, ending)) {
        return run.count();
    }
    const bool rounds = ending.result->type == GGML_TYPE_F16 || kept.in_halves != nullptr;
    const auto depth = static_cast<int>(weights.ne[0]);
    const auto rows = static_cast<int>(weights.ne[1]);
    const cudaDataType_t kind = type == GGML_TYPE_F16 ? CUDA_R_16F : CUDA_R_16BF;
    const float one = 1.0f;
    const float zero = 0.0f;
    CUBLAS_CHECK(cublasSetStream(context.cublas_handle(), stream));
    CUBLAS_CHECK(cublasGemmEx(context.cublas_handle(), CUBLAS_OP_T, CUBLAS_OP_N, rows, columns, depth, &one,
                              weights.data, kind, depth, values, kind, depth, &zero,
                              rounds ? ending.result->data : node.data, rounds ? CUDA_R_16F : CUDA_R_32F, rows,
                              CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT_TENSOR_OP));
    return ending.result->type == GGML_TYPE_F16 ? run.count() : 1;
}

}  // namespace sdcpp::cuda
