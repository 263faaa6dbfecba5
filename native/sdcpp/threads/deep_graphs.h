/* Graphs are deeper than the stacks of some threads: a node for each operation of a network in a row. Part of ggml-base. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_cgraph;
struct ggml_tensor;

/* Visits a tensor and what it is computed from, the sources first, in the order in which a function that calls itself for
   each source would: when `visit` is called for a tensor, its sources have been visited. */
void sdcpp_visit_sources_first(struct ggml_cgraph* graph, struct ggml_tensor* tensor, bool compute,
                               size_t (*visit)(struct ggml_cgraph* graph, struct ggml_tensor* tensor, bool compute));

#ifdef __cplusplus
}
#endif
