// The passes that have met, and the one graph that some of them become.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "ggml.h"
#include "sdcpp/api/run.h"
#include "sdcpp/lanes/lanes.h"
#include "sdcpp/streaming/lane_choice.h"
#include "sdcpp/streaming/scan.h"

namespace sdcpp {

class Pictures;

// A pass that waits for its result.
struct Pass {
    const Placement* placement;
    BuildGraph build;
    std::function<void(ggml_tensor*)> take;
    Sampling sampling;  // what it is part of
    bool done = false;
};

// What one thread of a call has come to.
struct Lane {
    std::vector<Pass*> passes;     // that wait, the later ones called from within the earlier ones
    Beside* beside = nullptr;      // the others of the step
    Pictures* pictures = nullptr;  // it draws one of these
};

// The lane of this thread.
Lane*& this_lane();

// Passes that are computed as one graph, of which the last one leads.
class LaneGroup : public std::enable_shared_from_this<LaneGroup> {
public:
    LaneGroup(Placement& placement, const GraphMaker& maker, BuildGraph leader)
        : placement_(placement), maker_(maker), leader_(std::move(leader)) {}

    // Builds the graph of the leader and of as many of those that wait as the planner affords, which follow from then
    // on.
    ggml_cgraph* build();
    // Gives them their results.
    void take();
    // Tells whether a graph is the leader's, of which one that waits is computed at the same time.
    bool has_side(const ggml_cgraph* graph) const { return side_ != nullptr && graph == graph_; }
    // Computes both.
    ggml_status compute_both(ggml_backend_t backend);

    const ggml_cgraph* graph() const { return graph_; }
    // How each of its passes reads the weights.
    const std::vector<Scan>& scans() const { return scans_; }
    // The results of all its passes.
    const std::vector<ggml_tensor*>& results() const { return results_; }

private:
    struct Built {
        ggml_cgraph* graph;
        Scan scan;
    };
    Built built(const BuildGraph& build);
    bool can_build() const;
    void keep_inputs();
    std::vector<Pass*> waiting() const;
    LaneChoice affordable(std::vector<Built>& all, const std::vector<Pass*>& wait, size_t pictures);
    ggml_cgraph* alone(ggml_cgraph* graph, const Lane& lane);
    ggml_cgraph* with_side(ggml_cgraph* graph);
    void say_why(const Lane& lane, bool differ, const std::string& reason) const;

    Placement& placement_;
    const GraphMaker maker_;
    const BuildGraph leader_;
    std::vector<Pass*> followers_;
    Pass* side_ = nullptr;  // that is computed at the same time; NULL: none
    std::vector<Scan> scans_;
    std::vector<ggml_tensor*> results_;
    std::vector<std::unique_ptr<char[]>> kept_;  // inputs that the runner may overwrite when it builds the next graph
    std::map<ggml_tensor*, const void*> known_inputs_;
    ggml_cgraph* graph_ = nullptr;
    size_t largest_ = 0;  // bytes that building one of the graphs took
};

}  // namespace sdcpp
