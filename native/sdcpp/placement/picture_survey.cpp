#include "sdcpp/placement/picture_survey.h"

#include <algorithm>
#include <vector>

#include "ggml-impl.h"
#include "sdcpp/kernels/policy.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/streaming/compute_use.h"
#include "sdcpp/streaming/cost.h"
#include "sdcpp/streaming/scan.h"

namespace sdcpp {

namespace {

// Lets a network's weights, which have no memory, look as if they had some while a graph is laid out.
class Elsewhere {
public:
    explicit Elsewhere(const WeightSet& weights) {
        for (const ggml_tensor* weight : weights) {
            if (weight->data == nullptr && weight->view_src == nullptr) {
                tensors_.push_back(const_cast<ggml_tensor*>(weight));
                tensors_.back()->data = this;
            }
        }
    }
    ~Elsewhere() {
        for (ggml_tensor* weight : tensors_) {
            weight->data = nullptr;
        }
    }
    Elsewhere(const Elsewhere&) = delete;
    Elsewhere& operator=(const Elsewhere&) = delete;

private:
    std::vector<ggml_tensor*> tensors_;
};

}  // namespace

bool surveying_pictures() {
    const Placements* const placements = placements_current();
    return placements != nullptr && placements->survey && placements->survey_pictures;
}

bool graph_surveyed(Placement& placement, const std::string& network, ggml_context* params, ggml_cgraph* graph) {
    if (placement.placements == nullptr || !placement.placements->survey_pictures) {
        return false;
    }
    const KernelScope kernels(placement.placements->fast_kernels);
    WeightSet weights;
    for (ggml_tensor* t = ggml_get_first_tensor(params); t != nullptr; t = ggml_get_next_tensor(params, t)) {
        weights.insert(t);
    }
    const Elsewhere elsewhere(weights);
    const auto use = compute_use(placement, graph);
    const Scan scan =
        scan_graph(network, weights, graph, ggml_backend_get_default_buffer_type(placement.params_backend), use);
    NetworkDemand& counted = placement.placements->demands[params];
    counted.module = placement.module;
    counted.network = network;
    sdcpp_demand_t& demand = counted.demand;
    demand.weight_bytes = std::max(demand.weight_bytes, scan.weight_bytes());
    demand.fixed_bytes = std::max(demand.fixed_bytes, scan.fixed_bytes);
    for (const Segment& segment : scan.segments) {
        demand.largest_segment_bytes = std::max(demand.largest_segment_bytes, segment.bytes);
    }
    demand.compute_bytes = std::max(demand.compute_bytes, compute_bytes(placement, *use));
    ++demand.graphs;
    for (int i = 0; i < graph->n_nodes; ++i) {
        if (computes(graph->nodes[i])) {
            const Work work = work_of(graph->nodes[i]);
            demand.flops += work.flops;
            demand.moved_bytes += work.moved_bytes;
            ++demand.operations;
        }
    }
    return true;
}

}  // namespace sdcpp
