#include "sdcpp/streaming/stream_plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <set>

#include "sdcpp/streaming/slot_layout.h"

namespace sdcpp {

namespace {

constexpr double roominess[] = {1.0, 1.07, 1.15, 1.22, 1.34, 1.5, 1.67,
                                2.0, 2.5,  3.0,  4.0,  6.0,  9.0, 13.0};  // memory of the slots, in largest segments
constexpr double merging[] = {0.0, 0.12, 0.34};  // segments are packed up to this part of that memory
constexpr size_t max_sizes = 16;                 // largest segments that are tried
constexpr int rate_rounds = 20;                  // halvings of the interval that holds the streaming rate
constexpr int simulated_laps = 3;                // graphs until the schedule repeats itself
constexpr double saved_enough = 0.5;             // a segment is streamed when this part of its bytes is saved up
constexpr double worth_more_slots = 1.002;       // a plan with more memory for slots must be better by this factor
constexpr double good_enough = 1.045;            // this near to the bound, a plan need not be better

struct Totals {
    uint64_t bytes = 0;
    uint64_t largest = 0;
    double cost = 0.0;
};

Totals totals(const StreamInput& input) {
    Totals all;
    for (const Segment& segment : input.segments) {
        all.bytes += segment.bytes;
        all.largest = std::max(all.largest, segment.bytes);
        all.cost += segment.cost;
    }
    return all;
}

uint64_t aligned(const StreamInput& input, uint64_t bytes) {
    return bytes / input.alignment * input.alignment;
}

// Walks through the graph twice, saving up `rate` bytes for each unit of cost, and streams a segment when its bytes are
// saved up; no more are saved than the slots hold, since no more can be copied ahead. Returns the second walk's choice.
uint64_t choose(const StreamInput& input, uint64_t largest, double rate, uint64_t slot_memory,
                std::vector<bool>& streamed) {
    double saved = 0.0;
    uint64_t bytes = 0;
    for (int lap = 0; lap < 2; ++lap) {
        bytes = 0;
        for (size_t i = 0; i < input.segments.size(); ++i) {
            const Segment& segment = input.segments[i];
            saved = std::min(static_cast<double>(slot_memory), saved + rate * segment.cost);
            const bool taken = segment.bytes > 0 && segment.bytes <= largest &&
                               saved >= saved_enough * static_cast<double>(segment.bytes);
            streamed[i] = taken;
            if (taken) {
                saved -= static_cast<double>(segment.bytes);
                bytes += segment.bytes;
            }
        }
    }
    return bytes;
}

// Makes segments resident again as long as more than `needed` bytes are streamed, the largest that fit first.
void trim(const StreamInput& input, uint64_t needed, uint64_t bytes, std::vector<bool>& streamed) {
    std::vector<size_t> order;
    for (size_t i = 0; i < streamed.size(); ++i) {
        if (streamed[i]) {
            order.push_back(i);
        }
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return input.segments[a].bytes > input.segments[b].bytes; });
    for (size_t i : order) {
        if (bytes - input.segments[i].bytes >= needed) {
            streamed[i] = false;
            bytes -= input.segments[i].bytes;
        }
    }
}

// Packs streamed segments, in order, into slots of at most `most` bytes, or of one segment.
std::vector<Slot> pack(const StreamInput& input, const std::vector<bool>& streamed, uint64_t most) {
    std::vector<Slot> slots;
    for (size_t i = 0; i < streamed.size(); ++i) {
        if (!streamed[i]) {
            continue;
        }
        if (slots.empty() || slots.back().bytes + input.segments[i].bytes > most) {
            slots.emplace_back();
        }
        slots.back().segments.push_back(i);
        slots.back().bytes += input.segments[i].bytes;
        slots.back().copies += input.segments[i].copies;
    }
    return slots;
}

// The sizes of a largest streamed segment that are worth trying.
std::vector<uint64_t> segment_sizes(const StreamInput& input, uint64_t limit) {
    std::set<uint64_t> sizes;
    for (const Segment& segment : input.segments) {
        if (segment.bytes > 0 && segment.bytes <= limit) {
            sizes.insert(segment.bytes);
        }
    }
    std::vector<uint64_t> found;
    const double step = sizes.empty()
                            ? 1.0
                            : std::pow(static_cast<double>(*sizes.rbegin()) / static_cast<double>(*sizes.begin()),
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

// Tells for each segment whether it is streamed, when segments of at most `largest` bytes go through
// `slot_memory` bytes of slots;
// false when they are too few.
bool divide(const StreamInput& input, const Totals& all, uint64_t largest, uint64_t slot_memory,
            std::vector<bool>& streamed) {
    const uint64_t taken = input.compute_bytes + input.fixed_bytes + slot_memory;
    if (taken > input.budget || slot_memory > input.largest_buffer) {
        return false;
    }
    const uint64_t room = input.budget - taken;
    const uint64_t needed = all.bytes > room ? all.bytes - room : 0;
    uint64_t possible = 0;
    for (const Segment& segment : input.segments) {
        possible += segment.bytes <= largest ? segment.bytes : 0;
    }
    if (possible < needed) {
        return false;
    }
    const size_t count = input.segments.size();
    std::vector<bool> tried(count);
    streamed.assign(count, false);
    uint64_t bytes = 0;
    if (all.cost > 0.0) {
        double low = 0.0;
        double high = 64.0 * static_cast<double>(needed) / all.cost;
        for (int round = 0; round < rate_rounds; ++round) {
            const double rate = round == 0 ? high : 0.5 * (low + high);
            const uint64_t got = choose(input, largest, rate, slot_memory, tried);
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
        if (!streamed[i] && input.segments[i].bytes > 0 && input.segments[i].bytes <= largest) {
            streamed[i] = true;
            bytes += input.segments[i].bytes;
        }
    }
    trim(input, needed, bytes, streamed);
    return true;
}

// Fills in a plan that streams those segments.
void fill(const StreamInput& input, const Totals& all, const std::vector<bool>& streamed, uint64_t slot_memory,
          double merge, uint64_t buffer, StreamPlan& plan) {
    plan.slots = pack(input, streamed, static_cast<uint64_t>(merge * static_cast<double>(slot_memory)));
    plan.slot_bytes = lay_out_slots(input, plan.slots, slot_memory, buffer);
    plan.streamed_bytes = 0;
    for (const Slot& slot : plan.slots) {
        plan.streamed_bytes += slot.bytes;
    }
    plan.resident = streamed;
    plan.resident.flip();
    plan.resident_bytes = input.fixed_bytes + all.bytes - plan.streamed_bytes;
    plan.peak_bytes = input.compute_bytes + plan.arena_bytes();
    plan.feasible = true;
}

// What a plan is made from, and its times: one for each ratio, over the longer one of computing and of copying what
// cannot be resident.
struct Candidate {
    std::vector<bool> streamed;
    uint64_t slot_memory;
    double merge;
    uint64_t buffer;
    uint64_t slot_bytes;
    std::array<double, std::size(copy_ratios)> times;
};

// Returns the candidate whose worst time, over the best one that any has at that ratio, is least.
const Candidate& best_of(const std::vector<Candidate>& candidates) {
    std::array<double, std::size(copy_ratios)> reachable;
    reachable.fill(HUGE_VAL);
    for (const Candidate& candidate : candidates) {
        for (size_t i = 0; i < reachable.size(); ++i) {
            reachable[i] = std::min(reachable[i], std::max(candidate.times[i], good_enough));
        }
    }
    const Candidate* best = nullptr;
    double least = HUGE_VAL;
    for (const Candidate& candidate : candidates) {
        double worst = 0.0;
        for (size_t i = 0; i < reachable.size(); ++i) {
            worst = std::max(worst, candidate.times[i] / reachable[i]);
        }
        const bool more = best != nullptr && candidate.slot_bytes > best->slot_bytes;
        if (worst * (more ? worth_more_slots : 1.0) < least) {
            least = worst;
            best = &candidate;
        }
    }
    return *best;
}

}  // namespace

double stream_seconds(const StreamInput& input, const StreamPlan& plan, double seconds_per_byte,
                      double seconds_per_cost) {
    const size_t count = plan.slots.size();
    std::vector<double> cost(2 * count + 1);  // before the first slot's segments; each slot's; what follows them
    size_t slots_begun = 0;
    for (size_t i = 0; i < input.segments.size(); ++i) {
        if (slots_begun < count && i == plan.slots[slots_begun].segments.front()) {
            ++slots_begun;
        }
        const bool inside = slots_begun > 0 && i <= plan.slots[slots_begun - 1].segments.back();
        cost[slots_begun == 0 ? 0 : 2 * slots_begun - (inside ? 1 : 0)] += input.segments[i].cost * seconds_per_cost;
    }
    for (double& seconds : cost) {
        seconds += seconds > 0.0 ? input.launch_cost * seconds_per_cost : 0.0;
    }
    double copied = 0.0, computed = 0.0, lap_begin = 0.0;
    if (!input.overlap) {
        for (double seconds : cost) {
            computed += seconds;
        }
        return computed + static_cast<double>(plan.streamed_bytes) * seconds_per_byte;
    }
    std::vector<double> marks;  // when each was passed
    marks.reserve(2 * count * simulated_laps);
    for (int lap = 0; lap < simulated_laps; ++lap) {
        lap_begin = computed;
        computed += cost[0];
        for (size_t i = 0; i < count; ++i) {
            const Slot& slot = plan.slots[i];
            marks.push_back(computed);
            copied += static_cast<double>(slot.copies) * input.copy_cost * seconds_per_cost;
            for (const SlotPart& part : slot.parts) {
                const double free = part.back == 0              ? lap_begin
                                    : marks.size() >= part.back ? marks[marks.size() - part.back]
                                                                : 0.0;
                copied = std::max(copied, free) + static_cast<double>(part.end - part.begin) * seconds_per_byte;
            }
            computed = std::max(computed, copied) + cost[2 * i + 1];
            marks.push_back(computed);
            computed += cost[2 * i + 2];
        }
    }
    return computed - lap_begin;
}

uint64_t smallest_budget(const StreamInput& input) {
    return input.compute_bytes + input.fixed_bytes + totals(input).largest;
}

StreamPlan stream_plan(const StreamInput& input) {
    const Totals all = totals(input);
    StreamPlan best;
    const uint64_t base = input.compute_bytes + input.fixed_bytes;
    best.minimum_budget = smallest_budget(input);
    if (input.budget < best.minimum_budget) {
        return best;
    }
    if (input.budget - base >= all.bytes) {
        best.feasible = true;
        best.resident.assign(input.segments.size(), true);
        best.resident_bytes = input.fixed_bytes + all.bytes;
        best.peak_bytes = base + all.bytes;
        return best;
    }
    const auto must = static_cast<double>(all.bytes - (input.budget - base));
    const uint64_t lendable = aligned(input, input.compute_buffer);
    std::vector<Candidate> candidates;
    std::vector<bool> streamed;
    StreamPlan plan;
    for (uint64_t largest : segment_sizes(input, std::min(input.budget - base, input.largest_buffer))) {
        for (double room : roominess) {
            const uint64_t slot_memory = aligned(input, static_cast<uint64_t>(room * static_cast<double>(largest)));
            if (!divide(input, all, largest, slot_memory, streamed)) {
                continue;
            }
            for (double merge : merging) {
                for (uint64_t buffer : {lendable, uint64_t{0}}) {
                    fill(input, all, streamed, slot_memory, merge, buffer, plan);
                    candidates.push_back({streamed, slot_memory, merge, buffer, plan.slot_bytes, {}});
                    for (size_t i = 0; i < std::size(copy_ratios); ++i) {
                        candidates.back().times[i] =
                            stream_seconds(input, plan, copy_ratios[i] / must, 1.0 / all.cost) / std::max(1.0, copy_ratios[i]);
                    }
                    if (!plan.borrows()) {
                        break;
                    }
                }
            }
            if (!input.overlap) {
                break;
            }
        }
    }
    if (!candidates.empty()) {
        const Candidate& chosen = best_of(candidates);
        fill(input, all, chosen.streamed, chosen.slot_memory, chosen.merge, chosen.buffer, best);
    }
    return best;
}

}  // namespace sdcpp
