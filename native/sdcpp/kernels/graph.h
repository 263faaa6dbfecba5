// What the engine asks while it builds a graph: whether our kernels will compute it, and for nodes that only they
// compute well.
#pragma once

#include <cstdint>

#include "ggml-backend.h"
#include "sdcpp/kernels/policy.h"

namespace sdcpp {

// Tells whether this thread's policy lets a backend compute with our kernels, and it has some. They convolve without a
// buffer of all windows.
bool kernels_at(ggml_backend_t backend);

// Returns a convolution that does itself what is done to its picture alone before: a group norm and SiLU, or doubling
// its width and height, so that there is no buffer for that, where the kernels of this thread's last device do so. On
// the CPU the norm and what follows it become one node. The same where there are no such kernels.
ggml_tensor* convolution(ggml_tensor* node);

// Returns what a convolution's picture is scaled by, so that halves hold it and what ggml sums up in halves: 1 where our
// kernels norm the picture first and sum up in f32, else what was asked.
float convolution_scale(const ggml_tensor* filters, const ggml_tensor* picture, float scale);

// Returns the sum of a residual block: of what its last convolution gave, and of its input or what a convolution of one
// tap made of that. Nothing else may read the input after the block: where our kernels convolve, the sum may lie in its
// memory.
ggml_tensor* residual(ggml_context* ctx, ggml_tensor* sum, ggml_tensor* input);

// Returns softmax(scale * q k^T + mask) v as [d, heads, queries, n], computed in blocks, so that there is no buffer of
// all scores; NULL where our kernels do not compute that, as those for CUDA do not where there is a mask. `kv_scale`:
// what keys and values are scaled by where they are halves, which hold no more than 65504.
//   q: [d, queries, heads * n]; k: [d, keys, kv_heads * n]; v: [d, kv_heads, keys, n]
//   mask: [keys, queries, 1 or heads]
ggml_tensor* attention(ggml_context* ctx, ggml_backend_t backend, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                       ggml_tensor* mask, float scale, float kv_scale);

// What our kernels for CUDA take of the device's pool while they compute a node, and what they keep of its input for
// the nodes that follow, in bytes; 0 under the policy `engine`.
uint64_t kernel_pool_bytes(const ggml_tensor* node);
uint64_t kernel_kept_bytes(const ggml_tensor* node);

}  // namespace sdcpp
