#include "sdcpp/streaming/streaming.h"

#include <algorithm>
#include <cstdint>

#include "ggml-impl.h"
#include "sdcpp/host/large_pages.h"
#include "sdcpp/lanes/lanes.h"
#include "sdcpp/lanes/side_pass.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/common.h"
#include "sdcpp/streaming/compute_use.h"
#include "sdcpp/streaming/memory_budget.h"
#include "sdcpp/streaming/streamer.h"

namespace sdcpp {

namespace {


// Ends a rehearsal at its first graph.
struct Rehearsed {};

thread_local bool rehearsing = false;

// Returns the budget of a runner that shares its device's memory with streamed ones; NULL for any other.
MemoryBudget* shared_budget(const Placement& placement) {
    if (placement.placements == nullptr || placement.placements->memory_budget.streamers().empty() ||
        ggml_backend_dev_type(placement.runtime->dev) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        return nullptr;
    }
    return &placement.placements->memory_budget;
}

// Frees what others keep on a runner's device, and what it keeps there itself as long as its graph is not bound to it.
// Returns false where there can be nothing.
bool make_all_room(Placement& placement) {
    MemoryBudget* const budget = shared_budget(placement);
    if (budget == nullptr) {
        return false;
    }
    Streamer* const self = placement.streamer.get();
    budget->make_all_room(placement.runtime->dev, self);
    if (self != nullptr && !self->bound()) {
        self->release();
    }
    return true;
}

// Lets a compute buffer in host memory have large pages, before anything is written there.
void take_large_pages(ggml_cgraph* graph) {
    for (int i = 0; i < graph->n_nodes; ++i) {
        ggml_backend_buffer_t const buffer = graph->nodes[i]->buffer;
        if (buffer != nullptr && ggml_backend_buffer_get_usage(buffer) == GGML_BACKEND_BUFFER_USAGE_COMPUTE) {
            if (ggml_backend_buffer_is_host(buffer)) {
                sdcpp::take_large_pages(ggml_backend_buffer_get_base(buffer), ggml_backend_buffer_get_size(buffer));
            }
            return;
        }
    }
}

}  // namespace

// --- runners whose weights are streamed ------------------------------------------------------------------------------

bool streams(const Placement& placement) {
    return placement.streamer != nullptr;
}

bool stream_prepare(Placement& placement, const std::string& runner, ggml_context* params, ggml_cgraph* graph) {
    const bool holds = placement.streamer->prepare(runner, params, graph);
    if (!holds) {
        forget_graphs(placement);  // the compute buffer is freed
    }
    return holds;
}

void stream_bind(Placement& placement, size_t compute_bytes) {
    placement.streamer->bind(compute_bytes);
}

bool stream_bound(const Placement& placement) {
    return placement.streamer != nullptr && placement.streamer->bound();
}

ggml_status stream_compute(Placement& placement, ggml_cgraph* graph, bool (*cancelled)()) {
    return placement.streamer->compute(graph, cancelled);
}

void stream_unbind(Placement& placement) {
    forget_graphs(placement);
    if (placement.side != nullptr) {
        placement.side->release();
    }
    if (placement.streamer != nullptr) {
        placement.streamer->deactivate();
    } else if (placement.compute_bytes > 0) {
        placement.placements->memory_budget.discount(placement.runtime->dev, placement.compute_bytes);
        placement.compute_bytes = 0;
    }
}

void stream_release(Placement& placement) {
    if (placement.streamer != nullptr) {
        placement.streamer->deactivate();
        placement.streamer->release();
    }
}

// --- what any runner allocates on its device -------------------------------------------------------------------------

void count_compute_buffer(Placement& placement, ggml_cgraph* graph) {
    MemoryBudget* const budget = shared_budget(placement);
    if (budget == nullptr || placement.streamer != nullptr || computes_again(placement)) {
        return;
    }
    ggml_backend_dev_t dev = placement.runtime->dev;
    const uint64_t bytes = compute_bytes(placement, *compute_use(placement, graph));
    const uint64_t more = saturating_sub(bytes, placement.compute_bytes);
    budget->make_room(dev, more);
    budget->count(dev, more);
    placement.compute_bytes += more;
}

bool compute_alloc(Placement& placement, bool (*allocate)(ggml_gallocr_t, ggml_cgraph*), ggml_gallocr_t allocator,
                   ggml_cgraph* graph) {
    settle(placement);
    if (computes_again(placement)) {
        return true;  // each value has its place already
    }
    const size_t bytes = ggml_gallocr_get_buffer_size(allocator, 0);
    const OnExit forget([&] {
        if (ggml_gallocr_get_buffer_size(allocator, 0) != bytes) {
            forget_graphs(placement);  // they lie in the buffer that it had
        }
    });
    if (allocate(allocator, graph)) {
        take_large_pages(graph);
        return true;
    }
    // A refused allocator has lost its buffer and does not know: only reserving makes it ask again.
    return make_all_room(placement) && ggml_gallocr_reserve(allocator, graph) && allocate(allocator, graph);
}

ggml_backend_buffer_t tensors_alloc(Placement& placement, ggml_context* ctx, ggml_backend_buffer_type_t type) {
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, type);
    if (buffer == nullptr) {
        forget_buffers(ctx);
        buffer = make_all_room(placement) ? ggml_backend_alloc_ctx_tensors_from_buft(ctx, type) : nullptr;
    }
    if (buffer == nullptr) {
        forget_buffers(ctx);
    }
    return buffer;
}

ggml_backend_buffer_t extra_tensors_alloc(Placement& placement, ggml_context* ctx) {
    ggml_backend_buffer_type_t type = ggml_backend_get_default_buffer_type(placement.runtime_backend);
    if (MemoryBudget* const budget = shared_budget(placement)) {
        budget->make_room(placement.runtime->dev, ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, type));
    }
    ggml_backend_buffer_t buffer = tensors_alloc(placement, ctx, type);
    if (buffer == nullptr) {
        throw_no_room(placement, placement.module, "control image");
    }
    if (placement.placements != nullptr) {
        placement.placements->memory_budget.count(placement.runtime->dev, ggml_backend_buffer_get_size(buffer));
    }
    return buffer;
}

void extra_tensors_free(Placement& placement, ggml_backend_buffer_t buffer) {
    if (placement.placements != nullptr) {
        placement.placements->memory_budget.discount(placement.runtime->dev, ggml_backend_buffer_get_size(buffer));
    }
    ggml_backend_buffer_free(buffer);
}

bool graph_has(ggml_cgraph* graph, const ggml_tensor* tensor) {
    ggml_tensor** const leafs = graph->leafs + graph->n_leafs;
    ggml_tensor** const nodes = graph->nodes + graph->n_nodes;
    return std::find(graph->leafs, leafs, tensor) != leafs || std::find(graph->nodes, nodes, tensor) != nodes;
}

// --- looking ahead ---------------------------------------------------------------------------------------------------

void rehearse(const Placements& placements, const std::function<void()>& function) {
    if (placements.memory_budget.streamers().empty()) {
        return;
    }
    rehearsing = true;
    try {
        function();
    } catch (const Rehearsed&) {
    } catch (...) {
        rehearsing = false;
        throw;
    }
    rehearsing = false;
}

void rehearse_graph(Placement& placement, const std::string& runner, ggml_context* params, ggml_cgraph* graph) {
    if (!rehearsing) {
        return;
    }
    if (placement.streamer != nullptr) {
        placement.streamer->check(runner, params, graph);
    }
    throw Rehearsed{};
}

}  // namespace sdcpp
