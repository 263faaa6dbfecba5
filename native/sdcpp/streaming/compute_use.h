// How computing a graph uses its compute buffer: how large that is, and where it is free meanwhile.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "ggml-backend.h"

namespace sdcpp {

struct Placement;

struct ComputeUse {
    uint64_t buffer = 0;            // its bytes
    uint64_t pool = 0;              // what the device takes besides for its largest operation, in bytes
    std::vector<int64_t> offsets;   // of each node's values in it; -1: elsewhere
    std::vector<uint64_t> heights;  // from where on it is free while a node is computed; empty: not known
    std::vector<uint64_t> values;   // what it holds meanwhile, in bytes
};

// Those of the last graphs, by their shapes, the last one first: of a picture's few, not of all that a process draws.
using ComputeUses = std::vector<std::pair<uint64_t, std::shared_ptr<const ComputeUse>>>;
constexpr size_t most_compute_uses = 16;

// Returns the tensor that has a tensor's values: itself, or what it is a view of.
const ggml_tensor* root(const ggml_tensor* tensor);
// Calls `visit` with each tensor of a graph.
void each_tensor(ggml_cgraph* graph, const std::function<void(ggml_tensor*)>& visit);
// Adds a number to a hash, which begins so.
constexpr uint64_t hash_begin = 14695981039346656037u;
inline uint64_t mix(uint64_t hash, uint64_t value) {
    return (hash ^ value) * 1099511628211u;  // FNV-1a, a word at a time
}
// Returns a number that graphs of one shape share; `and_place`: which read the same tensors at the same addresses.
uint64_t shape_of(ggml_cgraph* graph, bool and_place = false);
// Returns how one of a runner's graphs will use its compute buffer. Graphs of one shape share the answer.
std::shared_ptr<const ComputeUse> compute_use(Placement& placement, ggml_cgraph* graph);
// Returns what computing takes of the device: the buffer, and what the device takes besides and keeps.
uint64_t compute_bytes(const Placement& placement, const ComputeUse& use);
// Notes that a graph is computed, for which the device's pool grows.
void note_computing(const Placement& placement, ggml_cgraph* graph);
// Notes how a graph uses the compute buffer that it was given.
void note_use(ggml_cgraph* graph, ggml_backend_buffer_type_t type, ggml_backend_buffer_t buffer, ComputeUse& use);

}  // namespace sdcpp
