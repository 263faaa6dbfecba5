// Where each module of a context runs and where its weights live. Every runner asks here, while it is constructed and
// when it allocates its weights.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <vector>

#include "ggml-backend.h"
#include "stable-diffusion.h"

namespace sdcpp {

// The placements, devices and books of one context.
class Placements;
// What one runner was given.
struct Placement;

// Makes a context's placements the ones that runners of this thread ask for, until the end of the scope.
class PlacementScope {
public:
    explicit PlacementScope(std::shared_ptr<Placements> placements);
    ~PlacementScope();
    PlacementScope(const PlacementScope&) = delete;
    PlacementScope& operator=(const PlacementScope&) = delete;

private:
    std::shared_ptr<Placements> outer;
};

// Returns the placements of the scope, or, without one, new ones that say what the engine's flags say.
std::shared_ptr<Placements> placements_open(const sd_ctx_params_t* params);
// Returns the placements that a context was made with.
std::shared_ptr<Placements> placements_of(const sd_ctx_t* ctx);

// Returns the runtime backend of a module in the scope; without a scope, the engine's default backend.
ggml_backend_t module_backend(const char* module);
// Returns the placement of a runner; without a scope it says what the two other arguments say.
std::shared_ptr<Placement> placement_of(const char* module, ggml_backend_t backend, bool offload_params_to_cpu);
// Returns the backend that computes the runner's graphs.
ggml_backend_t runtime_backend(const Placement& placement);
// Returns the backend that keeps the runner's weights; the same one when they live where they are used.
ggml_backend_t params_backend(const Placement& placement);

// Allocates a runner's weights where its placement wants them, or in plain memory where that is refused, and books
// them; returns NULL when there are none, and throws NoRoom when there is no memory at all.
ggml_backend_buffer_t params_alloc(Placement& placement, ggml_context* ctx);
// Frees a runner's weights and takes them out of the books.
void params_free(Placement& placement, ggml_backend_buffer_t buffer);

// Returns memory for the tensors of a runner's graphs, the same each time: a graph's is mostly empty, and finding fresh
// pages for the rest takes the host as long as building the graph does.
void* graph_memory(Placement& placement, size_t bytes);

// Tells whether this thread only wants to know how large the weights would be.
bool surveying();
// While surveying, notes the size of a runner's weights and returns true: nothing is to be allocated.
bool survey_add(const Placement& placement, ggml_context* ctx);

// Tells whether a graph on a backend needs its own copy of a weight.
bool weights_elsewhere(const ggml_tensor* tensor, ggml_backend_t backend);
// Copies a weight and books the copy on its module.
void weights_copy(ggml_tensor* src, ggml_tensor* dst);
// Sets a tensor and, when the tensor or the data is a weight, books the copy on its module.
void weights_set(ggml_tensor* tensor, const void* data, size_t offset, size_t size);
// Reads a tensor and, when it is a weight, books the copy on its module.
void weights_get(const ggml_tensor* tensor, void* data, size_t offset, size_t size);

// Host copies of weights that live in another device's memory, for as long as a graph needs them.
class HostCopies {
public:
    // Returns the bytes of a weight: its own when the host can read them, else a copy's.
    const void* data_of(const ggml_tensor* tensor);
    void clear() { copies.clear(); }

private:
    std::list<std::vector<char>> copies;
};

}  // namespace sdcpp
