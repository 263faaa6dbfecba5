#include "sdcpp/kernels/cpu/kernels.h"

#include "ggml-cpu/simd-mappings.h"
#include "sdcpp/kernels/policy.h"

// Where ggml has no vectors it sums as doubles, and errs less than ours.
#if defined(__GNUC__) && defined(GGML_SIMD)

#include "sdcpp/kernels/cpu/nodes.h"

namespace {

using namespace sdcpp::cpu;

// Returns what computes a node; NULL: ggml does.
const Kernel* kernel_of(const ggml_tensor& node) {
    if (sdcpp_kernels_fast()) {
        for (const Kernel* kernel : {&matrix_product, &few_columns, &winograd, &convolution, &attention, &group_norm,
                                     &row_arithmetic, &rotation, &gelu_values}) {
            if (kernel->takes(node)) {
                return kernel;
            }
        }
    }
    return nullptr;
}

}  // namespace

bool sdcpp_kernels_compute(const ggml_compute_params* params, ggml_tensor* node) {
    const Kernel* const kernel = params->use_ref ? nullptr : kernel_of(*node);
    if (kernel != nullptr) {
        kernel->compute(*params, *node);
    }
    return kernel != nullptr;
}

bool sdcpp_kernels_work_size(int threads, const ggml_tensor* node, size_t* bytes) {
    const Kernel* const kernel = kernel_of(*node);
    if (kernel != nullptr) {
        *bytes = kernel->work_size(*node, threads);
    }
    return kernel != nullptr;
}

#else  // a compiler or a processor without vectors

bool sdcpp_kernels_compute(const ggml_compute_params*, ggml_tensor*) {
    return false;
}

bool sdcpp_kernels_work_size(int, const ggml_tensor*, size_t*) {
    return false;
}

#endif
