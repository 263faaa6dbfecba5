// What the engine asks while it builds a graph: whether our kernels will compute it, and for nodes that only they compute
// well.
#pragma once

#include "ggml-backend.h"
#include "sdcpp/kernels/policy.h"

namespace sdcpp {

// Tells whether this thread's policy lets a backend compute with our kernels, and it has some. They convolve without a
// buffer of all windows.
bool kernels_at(ggml_backend_t backend);

// Returns softmax(scale * q k^T) v as [d, heads, queries, n], computed in blocks, so that there is no buffer of all scores;
// NULL where our kernels do not compute that, and where there is a mask.
//   q: [d, queries, heads * n]; k: [d, keys, kv_heads * n]; v: [d, kv_heads, keys, n]
ggml_tensor* attention(ggml_context* ctx, ggml_backend_t backend, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                       const ggml_tensor* mask, float scale);

}  // namespace sdcpp
