// Where each module of a context runs and where its weights live. Every runner asks here before it allocates its
// weights.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "ggml-backend.h"
#include "stable-diffusion.h"

namespace sdcpp {

// The placements, devices and records of one context.
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

// Makes a module the one whose LoRAs this thread loads, until the end of the scope; without one it is "diffusion".
class LoraScope {
public:
    explicit LoraScope(const char* module);
    ~LoraScope();
    LoraScope(const LoraScope&) = delete;
    LoraScope& operator=(const LoraScope&) = delete;

private:
    const char* outer;
};

// Returns the placements of the scope, or, without one, new ones that say what the engine's flags say. A context is
// being loaded from here to params_alloc_waiting; its parameters become ones without these flags, which the placements
// keep.
std::shared_ptr<Placements> placements_open(const sd_ctx_params_t*& params);
// Returns the placements that a context was made with.
std::shared_ptr<Placements> placements_of(const sd_ctx_t* ctx);

// Returns the runtime backend of a module in the scope; without a scope, the engine's default backend.
ggml_backend_t module_backend(const char* module);

// What a runner lets its placement decide.
struct RunnerFields {
    ggml_backend_t& runtime_backend;  // computes its graphs
    ggml_backend_t& params_backend;   // keeps its weights; the same one when they live where they are used
    ggml_context* params;             // its weights
    ggml_context*& offload;           // their tensors on the runtime backend, made here when the two differ
};

// Returns the placement of a new runner, which has the backends that it was made with until it is placed.
std::shared_ptr<Placement> placement_new();
// Places a runner in the scope, the first time that it is called for it; network is the engine's description of it.
// Returns true when its weights are not to be allocated now: while surveying, which notes their size, while a context
// is being loaded, which calls `allocate` when all of them are known to fit the checkpoint, and while only the autoencoder
// is loaded, and it is none.
bool place_runner(Placement& placement, const std::string& network, RunnerFields runner,
                  std::function<void()> allocate);
// Tells whether a runner was placed in a scope, so that its backends are the placements' and not its own.
bool placed(const Placement& placement);

// Tells whether a runner computes with our kernels where they exist: its context's kernel policy, this thread's for a
// runner without one.
bool computes_fast(const Placement& placement);

// Allocates the weights of the runners of the scope that wait for it.
void params_alloc_waiting();
// Allocates a runner's weights where its placement wants them, or in plain memory where that is refused, and counts
// them; returns NULL when there are none, and throws NoRoom when there is no memory at all.
ggml_backend_buffer_t params_alloc(Placement& placement, ggml_context* ctx);
// Frees a runner's weights.
void params_free(Placement& placement, ggml_backend_buffer_t buffer);

// Returns memory for the tensors of a runner's next graph, that of the last one unless this is kept: a graph's is mostly
// empty, and finding fresh pages for the rest takes the host as long as building the graph does.
void* graph_memory(Placement& placement, size_t bytes);

// Notes how many layers a CLIP text encoder of the context that is being made has.
void clip_layers_note(int layers);

// Tells whether this thread only wants to know how large the weights would be,
bool surveying();
// and what pictures would take: see picture_survey.h.
bool surveying_pictures();
// Counts one of a runner's graphs where its context surveys pictures; false where it is to be computed. The network is
// the engine's description of it.
bool graph_surveyed(Placement& placement, const std::string& network, ggml_context* params, ggml_cgraph* graph);

}  // namespace sdcpp
