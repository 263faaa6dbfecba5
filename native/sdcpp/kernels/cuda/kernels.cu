#include "sdcpp/kernels/cuda/kernels.h"
#include "sdcpp/kernels/cuda/nodes.h"
#include "sdcpp/kernels/policy.h"

namespace sdcpp::cuda {

int compute(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first) {
    if (sdcpp_kernels_fast()) {
        kept_of(context).reach(graph, first);
        for (Kernel* const kernel : {convolution, group_norm, matrix_product, attention, rotation, element_wise}) {
            if (const int count = kernel(context, graph, first); count > 0) {
                return count;
            }
        }
    }
    return 0;
}

}  // namespace sdcpp::cuda
