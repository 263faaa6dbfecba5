#include "stream_plan.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace sdcpp {

namespace {

// Seconds of copying what cannot be resident for one second of computing: plans are compared over all of these.
constexpr double ratios[] = {0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0};
constexpr size_t max_sizes = 120;   // slot sizes that are tried, for each number of slots
constexpr int rate_rounds = 24;     // halvings of the interval that holds the streaming rate
constexpr int simulated_laps = 4;   // graphs until the schedule repeats itself
constexpr double worth_a_slot = 1.002;  // a plan with more memory in slots must be better by this factor

struct Totals {
    uint64_t bytes = 0;
    uint64_t largest = 0;
    double cost = 0.0;
};

Totals totals(const StreamInput& input) {
    Totals all;
    for (const Piece& piece : input.pieces) {
        all.bytes += piece.bytes;
        all.largest = std::max(all.largest, piece.bytes);
        all.cost += piece.cost;
    }
    return all;
}

// Walks through the graph twice, saving up `rate` bytes for each unit of cost, and streams a piece when its bytes are
// saved up; at most `cap` bytes are saved, since no more could be copied ahead. Returns the second walk's choice.
uint64_t choose(const StreamInput& input, uint64_t largest, double rate, double cap, std::vector<bool>& streamed) {
    double saved = 0.0;
    uint64_t bytes = 0;
    for (int lap = 0; lap < 2; ++lap) {
        bytes = 0;
        for (size_t i = 0; i < input.pieces.size(); ++i) {
            const Piece& piece = input.pieces[i];
            saved = std::min(cap, saved + rate * piece.cost);
            const bool taken = piece.bytes > 0 && piece.bytes <= largest &&
                               saved >= 0.5 * static_cast<double>(piece.bytes);
            streamed[i] = taken;
            if (taken) {
                saved -= static_cast<double>(piece.bytes);
                bytes += piece.bytes;
            }
        }
    }
    return bytes;
}

// Makes pieces resident again as long as more than `needed` bytes are streamed, the largest that fit first.
void trim(const StreamInput& input, uint64_t needed, uint64_t bytes, std::vector<bool>& streamed) {
    std::vector<size_t> order;
    for (size_t i = 0; i < streamed.size(); ++i) {
        if (streamed[i]) {
            order.push_back(i);
        }
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return input.pieces[a].bytes > input.pieces[b].bytes; });
    for (size_t i : order) {
        if (bytes - input.pieces[i].bytes >= needed) {
            streamed[i] = false;
            bytes -= input.pieces[i].bytes;
        }
    }
}

// Packs streamed pieces, in order, into segments of at most slot_bytes.
std::vector<StreamSegment> pack(const StreamInput& input, const std::vector<bool>& streamed, uint64_t slot_bytes) {
    std::vector<StreamSegment> segments;
    for (size_t i = 0; i < streamed.size(); ++i) {
        if (!streamed[i]) {
            continue;
        }
        if (segments.empty() || segments.back().bytes + input.pieces[i].bytes > slot_bytes) {
            segments.emplace_back();
        }
        segments.back().pieces.push_back(i);
        segments.back().bytes += input.pieces[i].bytes;
    }
    return segments;
}

// The slot sizes worth trying: the pieces' own and small multiples of them.
std::vector<uint64_t> slot_sizes(const StreamInput& input, uint64_t limit) {
    std::set<uint64_t> sizes;
    for (const Piece& piece : input.pieces) {
        for (uint64_t factor : {1, 2, 3}) {
            if (piece.bytes > 0 && factor * piece.bytes <= limit) {
                sizes.insert(factor * piece.bytes);
            }
        }
    }
    std::vector<uint64_t> found;
    const double step = sizes.empty() ? 1.0
                                      : std::pow(static_cast<double>(*sizes.rbegin()) /
                                                     static_cast<double>(*sizes.begin()),
                                                 1.0 / static_cast<double>(max_sizes));
    for (uint64_t size : sizes) {
        if (found.empty() || static_cast<double>(size) >= step * static_cast<double>(found.back())) {
            found.push_back(size);
        }
    }
    if (!sizes.empty() && found.back() != *sizes.rbegin()) {
        found.push_back(*sizes.rbegin());
    }
    return found;
}

bool fill(const StreamInput& input, const Totals& all, int slots, uint64_t slot_bytes, StreamPlan& plan) {
    const uint64_t taken = input.compute_bytes + input.fixed_bytes + static_cast<uint64_t>(slots) * slot_bytes;
    if (taken > input.budget) {
        return false;
    }
    const uint64_t room = input.budget - taken;
    const uint64_t needed = all.bytes > room ? all.bytes - room : 0;
    uint64_t possible = 0;
    for (const Piece& piece : input.pieces) {
        possible += piece.bytes <= slot_bytes ? piece.bytes : 0;
    }
    if (possible < needed) {
        return false;
    }
    const size_t count = input.pieces.size();
    std::vector<bool> streamed(count), tried(count);
    uint64_t bytes = 0;
    const double cap = static_cast<double>(std::max(slots - 1, 1)) * static_cast<double>(slot_bytes);
    if (all.cost > 0.0) {
        double low = 0.0;
        double high = 64.0 * static_cast<double>(needed) / all.cost;
        for (int round = 0; round < rate_rounds; ++round) {
            const double rate = round == 0 ? high : 0.5 * (low + high);
            const uint64_t got = choose(input, slot_bytes, rate, cap, tried);
            if (got >= needed) {
                high = rate;
                streamed = tried;
                bytes = got;
            } else if (round == 0) {
                streamed = tried;
                bytes = got;
                break;
            } else {
                low = rate;
            }
        }
    }
    for (size_t i = 0; bytes < needed && i < count; ++i) {
        if (!streamed[i] && input.pieces[i].bytes > 0 && input.pieces[i].bytes <= slot_bytes) {
            streamed[i] = true;
            bytes += input.pieces[i].bytes;
        }
    }
    trim(input, needed, bytes, streamed);
    plan.segments = pack(input, streamed, slot_bytes);
    plan.slots = slots;
    plan.slot_bytes = 0;
    plan.streamed_bytes = 0;
    for (const StreamSegment& segment : plan.segments) {
        plan.slot_bytes = std::max(plan.slot_bytes, segment.bytes);
        plan.streamed_bytes += segment.bytes;
    }
    plan.resident.resize(count);
    for (size_t i = 0; i < count; ++i) {
        plan.resident[i] = !streamed[i];
    }
    plan.resident_bytes = input.fixed_bytes + all.bytes - plan.streamed_bytes;
    plan.peak_bytes = input.compute_bytes + plan.arena_bytes();
    plan.feasible = true;
    return true;
}

// The worst, over all ratios, of the plan's time against the longer one of computing and of copying what cannot be
// resident.
double badness(const StreamInput& input, const Totals& all, const StreamPlan& plan) {
    const uint64_t room = input.budget - input.compute_bytes - input.fixed_bytes;
    const double must = static_cast<double>(all.bytes > room ? all.bytes - room : 0);
    double worst = 1.0;
    for (double ratio : ratios) {
        const double seconds = stream_seconds(input, plan, ratio / std::max(must, 1.0), 1.0 / all.cost);
        worst = std::max(worst, seconds / std::max(1.0, ratio));
    }
    return worst;
}

}  // namespace

double stream_seconds(const StreamInput& input, const StreamPlan& plan, double seconds_per_byte,
                      double seconds_per_cost) {
    const size_t count = plan.segments.size();
    std::vector<double> cost(2 * count + 1);  // before the first segment; each segment; what follows it
    size_t segment = 0;
    for (size_t i = 0; i < input.pieces.size(); ++i) {
        if (segment < count && i == plan.segments[segment].pieces.front()) {
            ++segment;
        }
        const bool inside = segment > 0 && i <= plan.segments[segment - 1].pieces.back();
        cost[segment == 0 ? 0 : 2 * segment - (inside ? 1 : 0)] += input.pieces[i].cost * seconds_per_cost;
    }
    const size_t slots = static_cast<size_t>(plan.slots);
    std::vector<double> free(std::max<size_t>(slots, 1), 0.0);
    double copied = 0.0, computed = 0.0, lap_begin = 0.0;
    size_t next = 0;
    for (int lap = 0; lap < simulated_laps; ++lap) {
        lap_begin = computed;
        computed += cost[0];
        for (size_t i = 0; i < count; ++i, ++next) {
            double& slot = free[next % slots];
            copied = std::max(copied, slot) + static_cast<double>(plan.segments[i].bytes) * seconds_per_byte;
            computed = std::max(computed, copied) + cost[2 * i + 1];
            slot = computed;
            computed += cost[2 * i + 2];
        }
    }
    return computed - lap_begin;
}

StreamPlan stream_plan(const StreamInput& input) {
    const Totals all = totals(input);
    StreamPlan best;
    const uint64_t base = input.compute_bytes + input.fixed_bytes;
    best.minimum_budget = base + all.largest;
    if (input.budget < best.minimum_budget) {
        return best;
    }
    if (input.budget - base >= all.bytes) {
        best.feasible = true;
        best.resident.assign(input.pieces.size(), true);
        best.resident_bytes = input.fixed_bytes + all.bytes;
        best.peak_bytes = base + all.bytes;
        return best;
    }
    double least = 0.0;
    for (int slots = 1; slots <= std::max(1, input.max_slots); ++slots) {
        for (uint64_t size : slot_sizes(input, (input.budget - base) / static_cast<uint64_t>(slots))) {
            StreamPlan plan;
            plan.minimum_budget = best.minimum_budget;
            if (!fill(input, all, slots, size, plan)) {
                continue;
            }
            const double bad = badness(input, all, plan);
            if (!best.feasible || bad * worth_a_slot < least) {
                least = bad;
                best = plan;
            }
        }
    }
    return best;
}

}  // namespace sdcpp
