#include "sdcpp/lanes/lane_group.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "ggml-impl.h"
#include "sdcpp/lanes/merge.h"
#include "sdcpp/lanes/pictures.h"
#include "sdcpp/lanes/side_pass.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/compute_use.h"
#include "sdcpp/streaming/streaming.h"
#include "sdcpp/streaming/test_hooks.h"
#include "util.h"

namespace sdcpp {

namespace {

// Returns a number that tells where a graph's values lie.
uint64_t places_of(ggml_cgraph* graph) {
    uint64_t hash = hash_begin;
    each_tensor(graph, [&](const ggml_tensor* tensor) { hash = mix(hash, reinterpret_cast<uintptr_t>(tensor->data)); });
    return hash;
}

// Makes this thread's run say that it is at another pass, until the end of the scope.
class AtPass {
public:
    explicit AtPass(const Pass& pass) : outer_(sampling_now()) { set(pass.sampling); }
    ~AtPass() { set(outer_); }
    AtPass(const AtPass&) = delete;
    AtPass& operator=(const AtPass&) = delete;

private:
    static void set(const Sampling& sampling) {
        if (Run* run = run_current()) {
            run->sampling = sampling;
        }
    }

    const Sampling outer_;
};

}  // namespace

// --- the same graph again --------------------------------------------------------------------------------------------

bool LaneGroup::serve(const Pass& leader) {
    const std::vector<Pass*> wait = waiting();
    const size_t others = inputs_.size() - 1;
    if (!confirmed_ || test_builds_each_graph() || wait.size() < others || !leader.inputs ||
        !inputs_.back().serves(*leader.inputs)) {
        return false;
    }
    for (size_t i = 0; i < others; ++i) {
        if (!wait[i]->inputs || !inputs_[i].serves(*wait[i]->inputs)) {
            return false;
        }
    }
    if (Streamer* const streamer = placement_.streamer.get()) {
        const Pictures* const pictures = this_lane()->pictures;
        if ((pictures != nullptr && pictures->pending() > 0) || !streamer->holds() ||
            (!wait.empty() && streamer->known_lanes(shape_, wait.size() + 1).lanes != others + 1)) {
            return false;
        }
        followers_.assign(wait.begin(), wait.begin() + static_cast<std::ptrdiff_t>(others));
        for (size_t i = 0; i < others; ++i) {
            inputs_[i].give(*wait[i]->inputs, maker_.inputs);
        }
    } else if (wait.size() != waited_) {
        return false;
    } else if (others > 0) {
        side_ = wait.front();
    }
    inputs_.back().give(*leader.inputs, maker_.inputs);
    again_ = true;
    whole_ = false;
    if (!std::exchange(said_, true)) {
        LOG_DEBUG("%s: the next passes have the graph of the last ones", maker_.network.c_str());
    }
    return true;
}

void LaneGroup::lead(const Pass& leader) {
    leader_ = leader.build;
    leader_inputs_ = leader.inputs;
}

// Returns a number that graphs share which compute the same of tensors that lie likewise in the runner's memory.
uint64_t LaneGroup::fingerprint() const {
    const auto* const begin = static_cast<const char*>(ggml_get_mem_buffer(maker_.tensors));
    const char* const end = begin + ggml_get_mem_size(maker_.tensors);
    uint64_t hash = hash_begin;
    const auto add = [&](const ggml_tensor* tensor) {
        hash = mix(mix(mix(hash, static_cast<uint64_t>(tensor->op)), static_cast<uint64_t>(tensor->type)),
                   static_cast<uint64_t>(tensor->flags));
        for (int i = 0; i < GGML_MAX_DIMS; ++i) {
            hash = mix(mix(hash, static_cast<uint64_t>(tensor->ne[i])), tensor->nb[i]);
        }
        for (const int32_t param : tensor->op_params) {
            hash = mix(hash, static_cast<uint32_t>(param));
        }
        const auto add_address = [&](const ggml_tensor* other) {
            const auto* const address = reinterpret_cast<const char*>(other);
            hash = mix(hash, reinterpret_cast<uintptr_t>(address) -
                                 (address >= begin && address < end ? reinterpret_cast<uintptr_t>(tensor) : 0));
        };
        std::for_each(std::begin(tensor->src), std::end(tensor->src), add_address);
        add_address(tensor->view_src);
    };
    for (ggml_cgraph* graph : {graph_, side_graph_}) {
        if (graph != nullptr) {
            each_tensor(graph, add);
        }
    }
    return hash;
}

bool LaneGroup::is_like(const LaneGroup& other) const {
    return fingerprint_ == other.fingerprint_ &&
           std::equal(inputs_.begin(), inputs_.end(), other.inputs_.begin(), other.inputs_.end(),
                      [](const GraphInputs& a, const GraphInputs& b) { return a.same_made(b); });
}

// Notes whether one of the last graphs was the same, which tells that it does not depend on values.
void LaneGroup::compare() {
    if (leader_inputs_) {
        fingerprint_ = fingerprint();
        confirmed_ = std::any_of(placement_.kept.begin(), placement_.kept.end(),
                                 [&](const auto& other) { return is_like(*other); });
        memory_ = confirmed_ ? placement_.graph_memory : nullptr;
    }
}

// --- the graph -------------------------------------------------------------------------------------------------------

LaneGroup::Built LaneGroup::built(const BuildGraph& build, const PassInputs* inputs) {
    const size_t before = ggml_used_mem(maker_.tensors);
    ggml_cgraph* const graph = build();
    largest_ = std::max(largest_, ggml_used_mem(maker_.tensors) - before);
    for (const auto& input : maker_.inputs) {
        // The runner's own constants, which it adds to the graph that it computes: what is planned for is to have them.
        if (!graph_has(graph, input.first)) {
            ggml_build_forward_expand(graph, input.first);
        }
    }
    GraphInputs its(inputs, maker_.inputs, inputs_);
    inputs_.push_back(std::move(its));
    return {graph, {}, inputs_.size() - 1};
}

LaneGroup::Built LaneGroup::built_lane(const BuildGraph& build, const PassInputs* inputs) {
    Built one = built(build, inputs);
    one.scan = placement_.streamer->scan_pass(maker_.network, maker_.params, one.graph);
    return one;
}

// Tells whether there is memory for one more graph, and for those that are made of them.
bool LaneGroup::can_build() const {
    return ggml_get_mem_size(maker_.tensors) - ggml_used_mem(maker_.tensors) > 4 * largest_;
}

// Returns the passes that wait for this runner: those of this thread first, then those of the next pictures.
std::vector<Pass*> LaneGroup::waiting() const {
    std::vector<Pass*> found;
    const auto add = [&](const Lane& lane) {
        std::copy_if(lane.passes.rbegin(), lane.passes.rend(), std::back_inserter(found),
                     [&](const Pass* pass) { return !pass->done && pass->placement == &placement_; });
    };
    const Lane& lane = *this_lane();
    add(lane);
    if (lane.pictures != nullptr) {
        for (const Lane* other : lane.pictures->others(lane)) {
            add(*other);
        }
    }
    return found;
}

// Lets a graph and those before it have the same segments, where one of them leaves out weights that the others read.
// False where they read different ones.
bool LaneGroup::align(std::vector<Built>& all, Built& next) const {
    const Scan& first = all.front().scan;
    if (next.scan.same_weights(first)) {
        return true;
    }
    const Streamer& streamer = *placement_.streamer;
    if (auto part = streamer.scan_part(first, next.graph)) {
        next.scan = std::move(*part);
        return true;
    }
    for (size_t i = all.size(); i-- > 0;) {
        if (auto part = streamer.scan_part(next.scan, all[i].graph)) {
            all[i].scan = std::move(*part);
        }
    }
    return next.scan.same_weights(first);
}

// Asks the planner how many passes are lanes of one graph, when it does not know yet with graphs of all of them: those
// of pictures that have not begun are like the leader's own.
LaneChoice LaneGroup::affordable(std::vector<Built>& all, const std::vector<Pass*>& wait, size_t pictures) {
    Streamer& streamer = *placement_.streamer;
    const size_t own = wait.size() + 1;
    const size_t wanted = own * pictures;
    shape_ = shape_of(all.front().graph);
    const LaneChoice known = streamer.known_lanes(shape_, wanted);
    if (known.lanes > 0) {
        return known;
    }
    for (size_t i = 1; i < std::min(wanted, most_lanes) && can_build(); ++i) {
        const Pass* const other = i % own == 0 ? nullptr : wait[i % own - 1];
        Built next =
            other == nullptr ? built_lane(leader_, leader_inputs()) : built_lane(other->build, other->known_inputs());
        align(all, next);
        all.push_back(std::move(next));
    }
    std::vector<ggml_cgraph*> graphs;
    std::vector<Scan> scans;
    for (const Built& one : all) {
        if (one.scan.same_weights(all.front().scan)) {
            graphs.push_back(one.graph);
            scans.push_back(one.scan);
        }
    }
    return streamer.choose_lanes(graphs, scans, wanted, lane_counts(own, pictures), maker_.tensors);
}

// Chooses a pass to compute beside the leader's: the first of those that wait.
void LaneGroup::add_side() {
    const std::vector<Pass*> wait = waiting();
    if (!wait.empty() && can_build()) {
        if (placement_.side == nullptr) {
            placement_.side = std::make_shared<SidePass>(placement_);
        }
        side_ = placement_.side->pays(graph_) ? wait.front() : nullptr;
    }
}

ggml_status LaneGroup::compute_both(ggml_backend_t backend) {
    bool ready = false;
    uint64_t places = 0;
    if (again_) {
        inputs_.front().give(*side_->inputs, maker_.inputs);
        ready = placement_.side->prepare(side_graph_, maker_.inputs);
        places = mix(places_of(graph_), places_of(side_graph_));
    }
    const SameGraphsScope same(again_ && std::exchange(places_, places) == places);
    const OnExit wait([&] { ggml_backend_synchronize(backend); });
    const ggml_status status = ggml_backend_graph_compute_async(backend, graph_);
    if (status == GGML_STATUS_SUCCESS) {
        if (!again_) {
            // The device computes the leader's pass meanwhile.
            side_graph_ = built(side_->build, side_->known_inputs()).graph;
            std::rotate(inputs_.begin(), inputs_.begin() + 1, inputs_.end());
            results_.insert(results_.begin(), ggml_graph_node(side_graph_, -1));
            compare();
            inputs_.front().give(maker_.inputs);
            ready = placement_.side->prepare(side_graph_, maker_.inputs);
        }
        if (ready && placement_.side->compute(side_graph_)) {
            followers_.push_back(side_);
        } else {
            results_.erase(results_.begin());
            refused_ = true;
        }
    }
    maker_.inputs.clear();
    return status;
}

// Adds as many lanes to the leader's graph as the planner affords.
void LaneGroup::add_lanes(const Lane& lane, Built leader) {
    const size_t pending = lane.pictures != nullptr ? lane.pictures->pending() : 0;
    std::vector<Pass*> wait = waiting();
    const size_t own = wait.size() + 1;
    if (own + pending == 1) {
        scans_.resize(1);
        say_why(lane, false, "");
        return;
    }
    leader.scan = placement_.streamer->scan_pass(maker_.network, maker_.params, leader.graph);
    std::vector<Built> all;
    all.push_back(std::move(leader));
    const LaneChoice choice = affordable(all, wait, pending + 1);
    const size_t lanes = choice.lanes;
    if (lanes > own && pending > 0) {
        lane.pictures->start(lanes / own - 1);
        wait = waiting();
    }
    all.resize(std::min(all.size(), own));
    std::vector<size_t> chosen{0};  // of all: the leader, and those that follow
    for (size_t i = 0; i < wait.size() && chosen.size() < lanes && can_build(); ++i) {
        if (all.size() == i + 1) {
            all.push_back(built_lane(wait[i]->build, wait[i]->known_inputs()));
        }
        if (align(all, all[i + 1])) {
            followers_.push_back(wait[i]);
            chosen.push_back(i + 1);
        }
    }
    std::vector<ggml_cgraph*> graphs;
    std::vector<size_t> inputs;
    for (size_t index : chosen) {
        graphs.push_back(all[index].graph);
        scans_.push_back(std::move(all[index].scan));
        inputs.push_back(all[index].inputs);
    }
    // The last node of all is the runner's result: the leader's.
    std::rotate(graphs.begin(), graphs.begin() + 1, graphs.end());
    std::rotate(scans_.begin(), scans_.begin() + 1, scans_.end());
    std::rotate(inputs.begin(), inputs.begin() + 1, inputs.end());
    ggml_cgraph* const merged = graphs.size() > 1 ? merge_graphs(maker_.tensors, graphs, scans_) : nullptr;
    if (merged != nullptr) {
        graph_ = merged;
    } else {
        followers_.clear();
        graphs.erase(graphs.begin(), graphs.end() - 1);
        scans_.erase(scans_.begin(), scans_.end() - 1);
        inputs.erase(inputs.begin(), inputs.end() - 1);
    }
    results_.clear();
    for (ggml_cgraph* graph : graphs) {
        results_.push_back(ggml_graph_node(graph, -1));
    }
    std::vector<GraphInputs> used;
    for (size_t index : inputs) {
        used.push_back(std::move(inputs_[index]));
    }
    inputs_ = std::move(used);
    say_why(lane, graphs.size() == 1 && !wait.empty() && lanes > 1, choice.reason);
}

ggml_cgraph* LaneGroup::build() {
    const Lane& lane = *this_lane();
    waited_ = waiting().size();
    Built leader = built(leader_, leader_inputs());
    graph_ = leader.graph;
    results_ = {ggml_graph_node(graph_, -1)};
    if (placement_.streamer != nullptr) {
        add_lanes(lane, std::move(leader));
    } else {
        add_side();
    }
    if (side_ == nullptr) {
        compare();
    }
    for (const GraphInputs& inputs : inputs_) {
        inputs.give(maker_.inputs);
    }
    leader_ = nullptr;
    return graph_;
}

// Says why passes take turns that could have been lanes.
void LaneGroup::say_why(const Lane& lane, bool differ, const std::string& reason) const {
    if (lane.beside != nullptr && !lane.beside->independent()) {
        placement_.streamer->say_of_lanes("the cache mode compares the passes of a step, which take turns");
    } else if (differ) {
        placement_.streamer->say_of_lanes("passes that read different weights take turns");
    } else if (!reason.empty()) {
        placement_.streamer->say_of_lanes(reason);
    }
}

void LaneGroup::take() {
    for (size_t i = 0; i < followers_.size(); ++i) {
        Pass& pass = *followers_[i];
        const AtPass at(pass);
        pass.take(results_[i]);
        pass.done = true;
    }
    followers_.clear();
    side_ = nullptr;
    again_ = false;
}

}  // namespace sdcpp
