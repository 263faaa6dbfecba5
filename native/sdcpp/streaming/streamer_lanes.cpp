// How a streamer plans for passes that could be lanes of one graph.
#include <algorithm>

#include "sdcpp/lanes/merge.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/streaming/common.h"
#include "sdcpp/streaming/memory_budget.h"
#include "sdcpp/streaming/streamer.h"
#include "sdcpp/streaming/test_hooks.h"

namespace sdcpp {

Scan Streamer::scan_pass(const std::string& runner, ggml_context* params, ggml_cgraph* graph) {
    get_to_know(runner, params);
    return scans_.of(runner_, params_, graph, arena_.type(), std::make_shared<ComputeUse>());
}

std::optional<Scan> Streamer::scan_part(const Scan& whole, ggml_cgraph* graph) const {
    return sdcpp::scan_part(whole, params_, graph, arena_.type(), std::make_shared<ComputeUse>());
}

// Returns what the network may hold once others that are idle are evicted.
uint64_t Streamer::room_for_lanes() const {
    const uint64_t allowed = active_ ? budget_ : budget().bytes(dev());
    return std::min(ceiling_, saturating_sub(allowed, budget().held_by_active(dev(), this)));
}

LaneChoice Streamer::known_lanes(uint64_t shape, size_t passes) {
    return choices_.known(shape, passes, room_for_lanes(), active_);
}

LaneChoice Streamer::choose_lanes(const std::vector<ggml_cgraph*>& graphs, const std::vector<Scan>& scans,
                                  size_t passes, const std::vector<size_t>& counts, ggml_context* tensors) {
    const uint64_t room = room_for_lanes();
    LaneChoice choice;
    choice.passes = passes;
    choice.shape = shape_of(graphs.front());
    choice.room = room;
    const size_t wanted = test_lanes();
    std::vector<LaneCandidate> candidates;
    for (size_t count : counts) {
        if (count > graphs.size() || (wanted > 0 && count > wanted)) {
            break;
        }
        const auto some = static_cast<std::ptrdiff_t>(count);
        std::vector<Scan> lanes(scans.begin(), scans.begin() + some);
        std::vector<ggml_cgraph*> merged(graphs.begin(), graphs.begin() + some);
        // As they will be, the first one last: in another order a compute buffer is laid out in another way.
        std::rotate(lanes.begin(), lanes.begin() + 1, lanes.end());
        std::rotate(merged.begin(), merged.begin() + 1, merged.end());
        ggml_cgraph* const graph = count > 1 ? merge_graphs(tensors, merged, lanes) : graphs.front();
        if (graph == nullptr) {
            break;
        }
        const auto use = compute_use(owner_, graph);
        LaneCandidate each;
        each.lanes = count;
        each.graphs = (passes + count - 1) / count;
        each.input = input(scan_lanes(lanes, graph, use), compute_bytes(owner_, *use), room);
        each.plan = stream_plan(each.input);
        if (!each.plan.feasible) {
            break;
        }
        if (wanted > 0) {
            candidates.clear();
        }
        candidates.push_back(std::move(each));
        if (wanted == 0 && candidates.front().plan.slots.empty()) {
            break;  // everything stays: there is nothing to copy less often
        }
    }
    choices_.choose(candidates, std::min(counts.back(), graphs.size()), choice);
    return choice;
}

}  // namespace sdcpp
