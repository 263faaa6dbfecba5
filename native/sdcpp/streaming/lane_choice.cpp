#include "sdcpp/streaming/lane_choice.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <tuple>

namespace sdcpp {

namespace {

constexpr double same_time = 1.005;  // up to this factor
constexpr double same_room = 1.05;   // likewise
constexpr size_t most_choices = 16;  // that are remembered

}  // namespace

size_t best_lanes(const std::vector<LaneCandidate>& candidates) {
    const LaneCandidate& first = candidates.front();
    double cost = 0.0;
    for (const Segment& segment : first.input.segments) {
        cost += segment.cost;
    }
    cost *= static_cast<double>(first.graphs);
    const auto copied = static_cast<double>(std::max<uint64_t>(first.copied(), 1));
    std::vector<double> worst(candidates.size());
    std::vector<double> seconds(candidates.size());
    for (const double ratio : copy_ratios) {
        for (size_t i = 0; i < candidates.size(); ++i) {
            const LaneCandidate& each = candidates[i];
            seconds[i] = static_cast<double>(each.graphs) *
                         stream_seconds(each.input, each.plan, ratio / copied, 1.0 / cost);
        }
        const double least = *std::min_element(seconds.begin(), seconds.end());
        for (size_t i = 0; i < candidates.size(); ++i) {
            worst[i] = std::max(worst[i], seconds[i] / least);
        }
    }
    const double best = *std::min_element(worst.begin(), worst.end());
    size_t chosen = candidates.size();
    for (size_t i = 0; i < candidates.size(); ++i) {
        const auto rank = [&](size_t at) { return std::make_tuple(candidates[at].copied(), candidates[at].lanes); };
        if (worst[i] <= same_time * best && (chosen == candidates.size() || rank(i) < rank(chosen))) {
            chosen = i;
        }
    }
    return chosen;
}

LaneChoice LaneChoices::known(uint64_t shape, size_t passes, uint64_t room, bool active) {
    const auto holds = [&](const LaneChoice& choice) {
        const bool as_much = static_cast<double>(std::max(choice.room, room)) <=
                             same_room * static_cast<double>(std::min(choice.room, room));
        return choice.shape == shape && (active ? choice.minimum_budget <= room : as_much);
    };
    auto known = std::find_if(choices_.begin(), choices_.end(),
                              [&](const LaneChoice& choice) { return choice.passes == passes && holds(choice); });
    if (known == choices_.end() && active && !choices_.empty() && holds(choices_.front())) {
        known = choices_.begin();
    }
    if (known == choices_.end()) {
        return {};
    }
    std::rotate(choices_.begin(), known, known + 1);
    LaneChoice choice = choices_.front();
    choice.lanes = std::min(choice.lanes, passes);
    return choice;
}

void LaneChoices::choose(const std::vector<LaneCandidate>& candidates, size_t most, LaneChoice& choice) {
    choice.lanes = 1;
    if (!candidates.empty()) {
        const LaneCandidate& best = candidates[best_lanes(candidates)];
        choice.lanes = best.lanes;
        choice.minimum_budget = best.plan.minimum_budget;
    }
    if (choice.lanes < most && (candidates.empty() || !candidates.front().plan.slots.empty())) {
        choice.reason = "more lanes would leave too little of the budget for weights";
    }
    choices_.insert(choices_.begin(), choice);
    choices_.resize(std::min(choices_.size(), most_choices));
}

}  // namespace sdcpp
