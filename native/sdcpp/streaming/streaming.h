// What the engine calls around every graph of a runner, so that weights that live in host memory are kept on the device
// as far as they fit and streamed while the device computes, and that everything else on the device is in the same
// budget. The words are explained in streamer.h.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "sdcpp/streaming/no_room.h"

namespace sdcpp {

class Placements;
struct Placement;

// --- runners whose weights are streamed

// Tells whether the weights of a runner are streamed.
bool streams(const Placement& placement);
// Plans for a graph that is about to be allocated and computed, and frees what the plan has no room for. Returns false
// when the plan is new, so that an older compute buffer has to go; throws NoRoom (seams.h) when the budget is too
// small.
bool stream_prepare(Placement& placement, const std::string& runner, ggml_context* params, ggml_cgraph* graph);
// Gives the weights of the prepared graph their addresses on the device; compute_bytes is what the compute buffer took.
void stream_bind(Placement& placement, size_t compute_bytes);
// Tells whether weights have addresses on the device.
bool stream_bound(const Placement& placement);
// Computes the prepared graph, with copies hidden behind it; cancelled is asked between two launches.
ggml_status stream_compute(Placement& placement, ggml_cgraph* graph, bool (*cancelled)());
// Gives the weights their addresses in host memory again, once the compute buffer is freed. Weights that are on the
// device stay there until others need the room.
void stream_unbind(Placement& placement);
// Frees what is on the device, once nothing reads the weights in host memory any more.
void stream_release(Placement& placement);

// --- what any runner allocates on its device

// Counts the compute buffer that a graph will take, where the runner's weights are not streamed, and makes room for it.
// stream_unbind ends that.
void count_compute_buffer(Placement& placement, ggml_cgraph* graph);
// Lets `allocate`, which is ggml_gallocr_reserve or ggml_gallocr_alloc_graph, allocate a compute buffer, where needed
// in place of what others keep on the device.
bool compute_alloc(Placement& placement, bool (*allocate)(ggml_gallocr_t, ggml_cgraph*), ggml_gallocr_t allocator,
                   ggml_cgraph* graph);
// Allocates a runner's tensors, likewise; NULL when that is refused.
ggml_backend_buffer_t tensors_alloc(Placement& placement, ggml_context* ctx, ggml_backend_buffer_type_t type);
// Allocates tensors that a runner keeps on its device besides its weights and its compute buffer, and counts them, or
// throws NoRoom.
ggml_backend_buffer_t extra_tensors_alloc(Placement& placement, ggml_context* ctx);
// Frees them.
void extra_tensors_free(Placement& placement, ggml_backend_buffer_t buffer);

// Tells whether a tensor is one of a graph's, so that what it is to hold is copied there.
bool graph_has(ggml_cgraph* graph, const ggml_tensor* tensor);

// --- looking ahead

// Calls `function` to look at the first graph that it computes, of which nothing is computed: throws NoRoom when that
// will not fit into the budget.
void rehearse(const Placements& placements, const std::function<void()>& function);
// Ends the rehearsal, if there is one.
void rehearse_graph(Placement& placement, const std::string& runner, ggml_context* params, ggml_cgraph* graph);

}  // namespace sdcpp
