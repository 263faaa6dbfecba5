/* Our kernels for the CPU, compiled into each variant of ggml's CPU backend with its instructions: ggml offers every node
   here first. They compute under the policy `fast` alone (../policy.h); what they do not take, ggml does. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;
struct ggml_tensor;

/* Computes this thread's part of a node, if it is one of ours. */
bool sdcpp_kernels_compute(const struct ggml_compute_params * params, struct ggml_tensor * node);
/* Sets the bytes of the work buffer that a node takes with so many threads, if it is one of ours. */
bool sdcpp_kernels_work_size(int threads, const struct ggml_tensor * node, size_t * bytes);

#ifdef __cplusplus
}
#endif
