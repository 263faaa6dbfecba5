// Host memory that others took, which CUDA devices read by DMA: locked by cudaHostRegister, and functions by name.
#include <cstdlib>
#include <string_view>

#include "common.cuh"
#include "sdcpp/kernels/cuda/kernels.h"

namespace sdcpp::cuda {

namespace {

// Makes a device the one that this thread's calls are for: registering begins a context there, which must not be one of
// a device that nobody uses.
bool choose(ggml_backend_dev_t dev) {
    ggml_backend_reg_t const reg = ggml_backend_dev_backend_reg(dev);
    for (size_t i = 0; i < ggml_backend_reg_dev_count(reg); ++i) {
        if (ggml_backend_reg_dev_get(reg, i) == dev) {
            return cudaSetDevice(static_cast<int>(i)) == cudaSuccess;
        }
    }
    return false;
}

bool memory_lock(ggml_backend_dev_t dev, void* data, size_t bytes) {
    // GGML_CUDA_NO_PINNED says the same to ggml's own host buffers.
    if (getenv("GGML_CUDA_NO_PINNED") != nullptr || !choose(dev) ||
        cudaHostRegister(data, bytes, cudaHostRegisterPortable) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    return true;
}

void memory_unlock(ggml_backend_dev_t dev, void* data) {
    if (!choose(dev) || cudaHostUnregister(data) != cudaSuccess) {
        (void)cudaGetLastError();
    }
}

}  // namespace

void* function(const char* name) {
    const std::string_view asked = name;
    if (asked == "sdcpp_kernels" || asked == "sdcpp_kernels_cuda") {
        return reinterpret_cast<void*>(compute);
    }
    return asked == "sdcpp_memory_lock"     ? reinterpret_cast<void*>(memory_lock)
           : asked == "sdcpp_memory_unlock" ? reinterpret_cast<void*>(memory_unlock)
                                            : nullptr;
}

}  // namespace sdcpp::cuda
