// Passes that are computed as one graph, and that graph.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "sdcpp/lanes/graph_inputs.h"
#include "sdcpp/lanes/meeting.h"
#include "sdcpp/streaming/lane_choice.h"
#include "sdcpp/streaming/scan.h"

namespace sdcpp {

// Passes that are computed as one graph, of which the last one leads. The graph of a step's passes is that of the next
// step's as well, but for what its inputs hold: once two were the same, the group stays for those that follow.
class LaneGroup : public std::enable_shared_from_this<LaneGroup> {
public:
    LaneGroup(Placement& placement, const GraphMaker& maker) : placement_(placement), maker_(maker) {}

    // Lets a pass lead, with this group's graph once more; false where it needs another one.
    bool serve(const Pass& leader);
    // Tells whether that is so.
    bool again() const { return again_; }
    // Lets a pass lead whose graph is to be built.
    void lead(const Pass& leader);
    // Builds the graph of the leader and of as many of those that wait as the planner affords, which follow from then
    // on.
    ggml_cgraph* build();
    // Gives them their results.
    void take();
    // Tells whether a graph is the leader's, of which one that waits is computed at the same time.
    bool has_side(const ggml_cgraph* graph) const { return side_ != nullptr && graph == graph_; }
    // Computes both.
    ggml_status compute_both(ggml_backend_t backend);
    // Notes that a graph is computed.
    void note_computed(const ggml_cgraph* graph) { whole_ = graph == graph_; }
    // How the streamer reads the weights for the graph, with its plan.
    std::optional<Scan>& streamed() { return streamed_; }

    ggml_cgraph* graph() const { return graph_; }
    // How each of its passes reads the weights.
    const std::vector<Scan>& scans() const { return scans_; }
    // The results of all its passes.
    const std::vector<ggml_tensor*>& results() const { return results_; }
    // Tells whether it can serve those that follow, after the next one at least.
    bool is_kept() const { return whole_ && !refused_ && leader_inputs_; }
    // Tells whether another group is of the same graph.
    bool is_like(const LaneGroup& other) const;

private:
    struct Built {
        ggml_cgraph* graph;
        Scan scan;
        size_t inputs;  // which of all
    };
    const PassInputs* leader_inputs() const { return leader_inputs_ ? &*leader_inputs_ : nullptr; }
    Built built(const BuildGraph& build, const PassInputs* inputs);
    Built built_lane(const BuildGraph& build, const PassInputs* inputs);
    bool can_build() const;
    std::vector<Pass*> waiting() const;
    LaneChoice affordable(std::vector<Built>& all, const std::vector<Pass*>& wait, size_t pictures);
    void add_side();
    void add_lanes(const Lane& lane, Built leader);
    bool align(std::vector<Built>& all, Built& next) const;
    void compare();
    uint64_t fingerprint() const;
    void say_why(const Lane& lane, bool differ, const std::string& reason) const;

    Placement& placement_;
    const GraphMaker maker_;
    BuildGraph leader_;  // while it is built
    std::optional<PassInputs> leader_inputs_;
    std::vector<Pass*> followers_;
    Pass* side_ = nullptr;  // that is computed at the same time; NULL: none
    ggml_cgraph* side_graph_ = nullptr;
    std::vector<Scan> scans_;
    std::vector<ggml_tensor*> results_;
    std::vector<GraphInputs> inputs_;  // of each graph, the leader's last
    ggml_cgraph* graph_ = nullptr;
    size_t largest_ = 0;  // bytes that building one of the graphs took

    std::shared_ptr<char[]> memory_;  // where the graph is, once it is confirmed
    std::optional<Scan> streamed_;
    size_t waited_ = 0;         // how many passes did besides the leader
    uint64_t shape_ = 0;        // of the leader's graph
    uint64_t fingerprint_ = 0;  // of the graph
    uint64_t places_ = 0;       // where the values of both graphs lay when they were computed last
    bool whole_ = false;        // it was computed as one
    bool refused_ = false;      // there was no memory for the one beside it
    bool confirmed_ = false;    // one before was the same
    bool again_ = false;
    bool said_ = false;  // to the log
};

}  // namespace sdcpp
