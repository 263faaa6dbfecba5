/* What a backend is told of what a thread computes, besides its graph. The kernel policy: `engine`, ggml's own kernels
   only, or `fast`, ours where they exist. Part of ggml-base: each variant of the CPU backend asks it, and the threads of a
   team have their caller's. */
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

/* Tells whether the graphs that this thread gives a backend are those that it gave it last, with all that they read and
   write where it was, so that the backend need not compare them; false until it is set. */
GGML_API bool sdcpp_graphs_same(void);
/* Sets it for this thread; returns what it was. */
GGML_API bool sdcpp_graphs_same_set(bool same);

#ifdef __cplusplus
}

namespace sdcpp {

// Tells backends something of what this thread computes until the end of the scope.
template <bool (*set)(bool)>
class TellScope {
public:
    explicit TellScope(bool value) : outer_(set(value)) {}
    ~TellScope() { set(outer_); }
    TellScope(const TellScope&) = delete;
    TellScope& operator=(const TellScope&) = delete;

private:
    const bool outer_;
};

using KernelScope = TellScope<sdcpp_kernels_fast_set>;
using SameGraphsScope = TellScope<sdcpp_graphs_same_set>;

}  // namespace sdcpp
#endif
