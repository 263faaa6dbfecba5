#include "sdcpp/kernels/cpu/kernels.h"

#include "sdcpp/kernels/policy.h"

#if defined(__GNUC__)

#include "sdcpp/kernels/cpu/nodes.h"

namespace {

using namespace sdcpp::cpu;

// Calls a function with what computes a node; returns false when ggml does.
template <typename F>
bool with_kernel(const ggml_tensor& node, F&& function) {
    if (!sdcpp_kernels_fast()) {
        return false;
    }
    if (MatrixProduct::takes(node)) {
        function(MatrixProduct(node));
    } else if (Convolution::takes(node)) {
        function(Convolution(node));
    } else {
        return false;
    }
    return true;
}

}  // namespace

bool sdcpp_kernels_compute(const ggml_compute_params* params, ggml_tensor* node) {
    return !params->use_ref &&
           with_kernel(*node, [&](const auto& kernel) { product_compute(*params, kernel.shape, kernel); });
}

bool sdcpp_kernels_work_size(int threads, const ggml_tensor* node, size_t* bytes) {
    return with_kernel(*node, [&](const auto& kernel) { *bytes = product_work_size(kernel.shape, threads); });
}

#else  // a compiler without vectors

bool sdcpp_kernels_compute(const ggml_compute_params*, ggml_tensor*) {
    return false;
}

bool sdcpp_kernels_work_size(int, const ggml_tensor*, size_t*) {
    return false;
}

#endif
