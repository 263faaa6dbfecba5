/* What the CPU spends its time on: seconds of the thread that called by operation, while somebody measures
   (scripts/bench/cpu.py does). Part of ggml-base. */
#pragma once

#include <stdbool.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Forgets what was measured, and measures the graphs of the CPU backend from now on, or no more. */
GGML_API void sdcpp_profile(bool on);
/* Fills in the name, nodes, seconds and floating-point operations of the index-th kind of node; false behind the last. */
GGML_API bool sdcpp_profile_row(int index, const char ** name, int * nodes, double * seconds, double * flops);

#ifdef __cplusplus
}

namespace sdcpp {

// A node begins on the thread that called; NULL: the graph is over.
void profile_node(const ggml_tensor* node);

}  // namespace sdcpp
#endif
