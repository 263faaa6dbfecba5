#include "sdcpp/lanes/meeting.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ggml-impl.h"
#include "sdcpp/lanes/merge.h"
#include "sdcpp/lanes/pictures.h"
#include "sdcpp/lanes/side_pass.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"

namespace sdcpp {

namespace {

thread_local Lane own_lane;
thread_local Lane* current_lane = &own_lane;

// Only the denoiser is computed several times with other inputs. What is streamed gains by lanes; what stays on the
// device by computing two passes of a step at the same time.
bool takes_lanes(const Placement& placement) {
    const Beside* const beside = this_lane()->beside;
    return placement.module == "diffusion" &&
           (placement.streamer != nullptr ||
            (beside != nullptr && beside->independent() && SidePass::is_possible(placement)));
}

Sampling sampling_now() {
    const Run* run = run_current();
    return run != nullptr ? run->sampling : Sampling{};
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

Lane*& this_lane() {
    return current_lane;
}

// --- the passes of a step --------------------------------------------------------------------------------------------

Beside::Beside(bool independent, std::vector<std::function<void()>> bodies)
    : independent_(independent), bodies_(std::move(bodies)), outer_(std::exchange(this_lane()->beside, this)) {}

Beside::~Beside() {
    this_lane()->beside = outer_;
}

void Beside::run(size_t index) {
    if (const auto body = std::exchange(bodies_[index], nullptr)) {
        body();
    }
}

bool Beside::run_next() {
    const auto next = std::find_if(bodies_.begin(), bodies_.end(), [](const auto& body) { return body != nullptr; });
    if (next == bodies_.end()) {
        return false;
    }
    run(static_cast<size_t>(next - bodies_.begin()));
    return true;
}

// --- the meeting -----------------------------------------------------------------------------------------------------

bool lane_meet(Placement& placement, const GraphMaker& maker, BuildGraph& build,
               std::function<void(ggml_tensor*)> take) {
    if (placement.streamer == nullptr) {
        placement.lanes = nullptr;  // of a graph that failed
    }
    if (!takes_lanes(placement)) {
        return false;
    }
    Lane& lane = *this_lane();
    if (lane.passes.empty() && lane.beside != nullptr) {
        lane.beside->begin_pass();
    }
    Pass pass{&placement, build, std::move(take), sampling_now()};
    lane.passes.push_back(&pass);
    const OnExit leave([&] { lane.passes.erase(std::find(lane.passes.begin(), lane.passes.end(), &pass)); });
    while (!pass.done && lane.beside != nullptr && lane.beside->independent() && lane.beside->run_next()) {
    }
    if (!pass.done && lane.pictures != nullptr) {
        lane.pictures->gather(lane);
    }
    if (pass.done) {
        return true;
    }
    placement.lanes = std::make_shared<LaneGroup>(placement, maker, build);
    build = [group = placement.lanes] { return group->build(); };
    return false;
}

void lanes_take(Placement& placement) {
    if (const auto group = std::exchange(placement.lanes, nullptr)) {
        group->take();
    }
}

// --- the graph -------------------------------------------------------------------------------------------------------

// Copies the inputs of the graph that was built last: a runner keeps some of them only until it builds another one.
void LaneGroup::keep_inputs() {
    for (auto& [tensor, data] : maker_.inputs) {
        const auto known = known_inputs_.find(tensor);
        if (known == known_inputs_.end()) {
            const size_t bytes = ggml_nbytes(tensor);
            kept_.emplace_back(new char[bytes]);
            std::memcpy(kept_.back().get(), data, bytes);
            data = kept_.back().get();
            known_inputs_[tensor] = data;
        }
    }
}

LaneGroup::Built LaneGroup::built(const BuildGraph& build) {
    keep_inputs();
    const size_t before = ggml_used_mem(maker_.tensors);
    ggml_cgraph* const graph = build();
    largest_ = std::max(largest_, ggml_used_mem(maker_.tensors) - before);
    return {graph, placement_.streamer->scan_pass(maker_.network, maker_.params, graph)};
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

// Asks the planner how many passes are lanes of one graph, when it does not know yet with graphs of all of them: those
// of pictures that have not begun are like the leader's own.
LaneChoice LaneGroup::affordable(std::vector<Built>& all, const std::vector<Pass*>& wait, size_t pictures) {
    Streamer& streamer = *placement_.streamer;
    const size_t own = wait.size() + 1;
    const size_t wanted = own * pictures;
    const LaneChoice known = streamer.known_lanes(all.front().graph, wanted);
    if (known.lanes > 0) {
        return known;
    }
    std::vector<ggml_cgraph*> graphs{all.front().graph};
    std::vector<Scan> scans{all.front().scan};
    for (size_t i = 1; i < std::min(wanted, most_lanes) && can_build(); ++i) {
        Built next = built(i % own == 0 ? leader_ : wait[i % own - 1]->build);
        if (next.scan.same_weights(scans.front())) {
            graphs.push_back(next.graph);
            scans.push_back(next.scan);
        }
        all.push_back(std::move(next));
    }
    return streamer.choose_lanes(graphs, scans, wanted, lane_counts(own, pictures), maker_.tensors);
}

// Makes a graph the group's, of the leader's pass only.
ggml_cgraph* LaneGroup::alone(ggml_cgraph* graph, const Lane& lane) {
    graph_ = graph;
    scans_.resize(1);
    results_ = {ggml_graph_node(graph, -1)};
    say_why(lane, false, "");
    return graph;
}

// Makes a graph the group's, beside which the first of those that wait is computed.
ggml_cgraph* LaneGroup::with_side(ggml_cgraph* graph) {
    graph_ = graph;
    results_ = {ggml_graph_node(graph, -1)};
    const std::vector<Pass*> wait = waiting();
    if (!wait.empty() && can_build()) {
        if (placement_.side == nullptr) {
            placement_.side = std::make_shared<SidePass>(placement_);
        }
        side_ = placement_.side->pays(graph) ? wait.front() : nullptr;
    }
    return graph;
}

ggml_status LaneGroup::compute_both(ggml_backend_t backend) {
    const OnExit wait([&] { ggml_backend_synchronize(backend); });
    const ggml_status status = ggml_backend_graph_compute_async(backend, graph_);
    if (status == GGML_STATUS_SUCCESS) {
        // The device computes the leader's pass meanwhile.
        ggml_cgraph* const graph = side_->build();
        if (placement_.side->compute(graph, maker_.inputs)) {
            followers_.push_back(side_);
            results_.insert(results_.begin(), ggml_graph_node(graph, -1));
        }
        maker_.inputs.clear();
    }
    return status;
}

ggml_cgraph* LaneGroup::build() {
    const Lane& lane = *this_lane();
    if (placement_.streamer == nullptr) {
        const size_t before = ggml_used_mem(maker_.tensors);
        ggml_cgraph* const graph = leader_();
        largest_ = ggml_used_mem(maker_.tensors) - before;
        return with_side(graph);
    }
    const size_t pending = lane.pictures != nullptr ? lane.pictures->pending() : 0;
    std::vector<Pass*> wait = waiting();
    const size_t own = wait.size() + 1;
    if (own + pending == 1) {
        return alone(leader_(), lane);
    }
    std::vector<Built> all;
    all.push_back(built(leader_));
    const LaneChoice choice = affordable(all, wait, pending + 1);
    const size_t lanes = choice.lanes;
    if (lanes > own && pending > 0) {
        lane.pictures->start(lanes / own - 1);
        wait = waiting();
    }
    graph_ = all.front().graph;
    scans_ = {all.front().scan};
    std::vector<ggml_cgraph*> graphs{graph_};
    for (size_t i = 0; i < wait.size() && graphs.size() < lanes && can_build(); ++i) {
        Built next = i + 1 < std::min(all.size(), own) ? std::move(all[i + 1]) : built(wait[i]->build);
        if (next.scan.same_weights(scans_.front())) {
            followers_.push_back(wait[i]);
            graphs.push_back(next.graph);
            scans_.push_back(std::move(next.scan));
        }
    }
    // The last node of all is the runner's result: the leader's.
    std::rotate(graphs.begin(), graphs.begin() + 1, graphs.end());
    std::rotate(scans_.begin(), scans_.begin() + 1, scans_.end());
    ggml_cgraph* const merged = graphs.size() > 1 ? merge_graphs(maker_.tensors, graphs, scans_) : nullptr;
    if (merged != nullptr) {
        graph_ = merged;
    } else {
        followers_.clear();
        graphs.erase(graphs.begin(), graphs.end() - 1);
        scans_.erase(scans_.begin(), scans_.end() - 1);
    }
    for (ggml_cgraph* graph : graphs) {
        results_.push_back(ggml_graph_node(graph, -1));
    }
    say_why(lane, graphs.size() == 1 && !wait.empty() && lanes > 1, choice.reason);
    return graph_;
}

// Says why passes take turns that could have been lanes.
void LaneGroup::say_why(const Lane& lane, bool differ, const std::string& reason) const {
    if (lane.beside != nullptr && !lane.beside->independent()) {
        placement_.streamer->say_of_lanes("the cache mode compares the passes of a step, which take turns");
    } else if (lane.beside != nullptr && lane.beside->is_late()) {
        placement_.streamer->say_of_lanes("the pass that leaves layers out takes its turn after the others");
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
}

}  // namespace sdcpp
