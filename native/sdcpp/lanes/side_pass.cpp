#include "sdcpp/lanes/side_pass.h"

#include <algorithm>

#include "ggml-impl.h"
#include "sdcpp/kernels/graph.h"
#include "sdcpp/lanes/lanes.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/streaming/common.h"
#include "sdcpp/streaming/long_graphs.h"
#include "sdcpp/streaming/memory_budget.h"
#include "sdcpp/streaming/streaming.h"

namespace sdcpp {

namespace {

// Tells whether a graph reads values of another graph: in a compute buffer that is not its own, which it has when it is
// computed again.
bool shares_values(ggml_cgraph* graph) {
    ggml_backend_buffer_t const own = root(ggml_graph_node(graph, -1))->buffer;
    return std::any_of(graph->leafs, graph->leafs + graph->n_leafs, [&](const ggml_tensor* tensor) {
        ggml_backend_buffer_t const buffer = root(tensor)->buffer;
        return buffer != nullptr && buffer != own &&
               ggml_backend_buffer_get_usage(buffer) == GGML_BACKEND_BUFFER_USAGE_COMPUTE;
    });
}

}  // namespace

bool SidePass::is_possible(const Placement& placement) {
    if (placement.streamer != nullptr || placement.runtime == nullptr || placement.placements == nullptr ||
        is_cpu(placement.runtime->dev) || !computes_fast(placement)) {
        return false;
    }
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(placement.runtime->dev, &props);
    const ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(placement.runtime->dev);
    return props.caps.async && ggml_backend_reg_get_proc_address(reg, "sdcpp_kernels") != nullptr;
}

// Returns the bytes that a graph takes, besides those that are counted already.
uint64_t SidePass::wanted(ggml_cgraph* graph) const {
    return saturating_sub(compute_bytes(owner_, *compute_use(owner_, graph)), bytes_);
}

bool SidePass::has_room(uint64_t more) const {
    return more == 0 || owner_.placements->memory_budget.left(owner_.runtime->dev) >= more;
}

bool SidePass::pays(ggml_cgraph* graph) {
    // One that is computed in parts, so that it can be cancelled between them, fills the device by itself.
    return parts_of(*owner_.runtime, cost_of_graph(graph)) == 1 && has_room(wanted(graph)) &&
           owner_.runtime->side_backend() != nullptr;
}

// Gives a graph its compute buffer, where there is memory for that.
bool SidePass::alloc(ggml_cgraph* graph) {
    const uint64_t more = wanted(graph);
    if (!has_room(more)) {
        return false;
    }
    owner_.placements->memory_budget.count(owner_.runtime->dev, more);
    bytes_ += more;
    if (allocator_ == nullptr) {
        allocator_.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(owner_.runtime_backend)));
    }
    const size_t bytes = ggml_gallocr_get_buffer_size(allocator_.get(), 0);
    if (!ggml_gallocr_alloc_graph(allocator_.get(), graph)) {
        release();
        return false;
    }
    if (ggml_gallocr_get_buffer_size(allocator_.get(), 0) != bytes) {
        forget_graphs(owner_);  // they lie in the buffer that it had
    }
    return true;
}

bool SidePass::prepare(ggml_cgraph* graph, const std::map<ggml_tensor*, const void*>& inputs) {
    if (shares_values(graph) || !alloc(graph)) {
        return false;
    }
    for (const auto& [tensor, data] : inputs) {
        if (graph_has(graph, tensor) && root(tensor)->buffer != nullptr) {
            ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
        }
    }
    return true;
}

bool SidePass::compute(ggml_cgraph* graph) {
    ggml_backend_t const backend = owner_.runtime->side_backend();
    const ggml_status status = ggml_backend_graph_compute_async(backend, graph);
    ggml_backend_synchronize(backend);
    return status == GGML_STATUS_SUCCESS;
}

void SidePass::release() {
    forget_graphs(owner_);
    allocator_.reset();
    if (bytes_ > 0) {
        owner_.placements->memory_budget.discount(owner_.runtime->dev, bytes_);
        bytes_ = 0;
    }
}

}  // namespace sdcpp
