// What ggml's CUDA backend asks before it computes a node of a graph.
#pragma once

#include <cstddef>
#include <memory>

#include "sdcpp/kernels/policy.h"

struct ggml_backend_cuda_context;
struct ggml_cgraph;
struct ggml_tensor;

namespace sdcpp::cuda {

struct Kept;

// What our kernels keep between the nodes of a graph. Part of ggml's context of a device, which ends it before its
// pools.
using KeptPtr = std::shared_ptr<Kept>;

// Computes nodes of a graph from one on, under the policy `fast` alone. Returns how many: 0, ggml computes this one.
int compute(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first);

// Tells whether our attention computes a node on a device, under the policy `fast` alone.
bool computes_attention(int device, const ggml_tensor& node);

// Returns a function of ours that the backend's registry offers under a name, or NULL.
void* function(const char* name);

// Forgets CUDA graphs before there are too many: each is known by where its first node lies, which changes from model
// to model, and few are computed again and again. A streamed pass is up to two for each of its slots, hundreds of a few
// nodes each, which are all wanted again by the next pass.
template <typename Graphs>
void limit(Graphs& graphs) {
    constexpr size_t most = 4096;
    constexpr size_t most_nodes = 1 << 17;
    size_t nodes = 0;
    for (const auto& [first_node, graph] : graphs) {
        nodes += graph->props.size();
    }
    if (graphs.size() >= most || nodes >= most_nodes) {
        graphs.clear();
    }
}

}  // namespace sdcpp::cuda
