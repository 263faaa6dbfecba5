/* The kernel policy of what a thread computes: `engine`, ggml's own kernels only, or `fast`, ours where they exist. Part
   of ggml-base: each variant of the CPU backend asks it, and the threads of a team have their caller's. */
#pragma once

#include <stdbool.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tells whether this thread computes with our kernels where they exist; false until it is set. */
GGML_API bool sdcpp_kernels_fast(void);
/* Sets it for this thread; returns what it was. */
GGML_API bool sdcpp_kernels_fast_set(bool fast);

#ifdef __cplusplus
}

namespace sdcpp {

// Lets this thread compute with a kernel policy until the end of the scope.
class KernelScope {
public:
    explicit KernelScope(bool fast) : outer(sdcpp_kernels_fast_set(fast)) {}
    ~KernelScope() { sdcpp_kernels_fast_set(outer); }
    KernelScope(const KernelScope&) = delete;
    KernelScope& operator=(const KernelScope&) = delete;

private:
    const bool outer;
};

}  // namespace sdcpp
#endif
