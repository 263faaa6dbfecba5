#include "sdcpp/lanes/meeting.h"

#include <algorithm>
#include <utility>

#include "sdcpp/lanes/lane_group.h"
#include "sdcpp/lanes/pictures.h"
#include "sdcpp/lanes/side_pass.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/streaming.h"

namespace sdcpp {

namespace {

constexpr size_t most_graphs = 4;  // that are kept: of a step that has one for each of its passes

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

}  // namespace

Lane*& this_lane() {
    return current_lane;
}

Sampling sampling_now() {
    const Run* run = run_current();
    return run != nullptr ? run->sampling : Sampling{};
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
    // Of a survey's graphs nothing is kept: their weights have no memory, which would be laid out with them.
    if (placement.module != "diffusion" || surveying()) {
        return false;
    }
    Pass pass{&placement, build, std::move(take), sampling_now()};
    if (const PassInputs* const inputs = PassScope::current()) {
        pass.inputs = *inputs;
    }
    if (takes_lanes(placement)) {
        Lane& lane = *this_lane();
        lane.passes.push_back(&pass);
        const OnExit leave([&] { lane.passes.erase(std::find(lane.passes.begin(), lane.passes.end(), &pass)); });
        while (!pass.done && lane.beside != nullptr && lane.beside->independent() && lane.beside->run_next()) {
        }
        if (!pass.done && lane.pictures != nullptr) {
            lane.pictures->gather(lane);
        }
    }
    if (pass.done) {
        return true;
    }
    const auto serves =
        std::find_if(placement.kept.begin(), placement.kept.end(), [&](const auto& group) { return group->serve(pass); });
    if (serves != placement.kept.end()) {
        placement.lanes = std::move(*serves);
        placement.kept.erase(serves);
    } else {
        placement.lanes = std::make_shared<LaneGroup>(placement, maker);
        placement.lanes->lead(pass);
        build = [group = placement.lanes] { return group->build(); };
    }
    return false;
}

bool computes_again(const Placement& placement) {
    return placement.lanes != nullptr && placement.lanes->again();
}

bool computes_again(const Placement& placement, ggml_cgraph** graph) {
    if (!computes_again(placement)) {
        return false;
    }
    *graph = placement.lanes->graph();
    return true;
}

ggml_tensor* lanes_take(Placement& placement, ggml_tensor* named) {
    const auto group = std::exchange(placement.lanes, nullptr);
    if (group == nullptr) {
        return named;
    }
    ggml_tensor* const result = group->again() ? ggml_graph_node(group->graph(), -1) : named;
    group->take();
    if (group->is_kept()) {
        auto& kept = placement.kept;
        kept.erase(std::remove_if(kept.begin(), kept.end(), [&](const auto& other) { return other->is_like(*group); }),
                   kept.end());
        kept.insert(kept.begin(), group);
        kept.resize(std::min(kept.size(), most_graphs));
    }
    return result;
}

void forget_graphs(Placement& placement) {
    placement.kept.clear();
}

}  // namespace sdcpp
