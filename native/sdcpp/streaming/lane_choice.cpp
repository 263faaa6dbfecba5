#include "sdcpp/streaming/lane_choice.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <tuple>

namespace sdcpp {

namespace {

// Seconds of copying what the first candidate streams for one second of computing.
constexpr double ratios[] = {0.25, 0.5, 1.0, 2.0, 4.0};
constexpr double same_time = 1.005;  // up to this factor

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
    for (const double ratio : ratios) {
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

}  // namespace sdcpp
