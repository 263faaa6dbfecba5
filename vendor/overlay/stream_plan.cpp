#include "stream_plan.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace sdcpp {

namespace {

// Seconds of copying what cannot be resident for one second of computing: plans are compared over all of these.
constexpr double ratios[] = {0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0};
constexpr double roominess[] = {1.0, 1.15, 1.34, 1.67, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 13.0};  // memory of the slots, in largest pieces
constexpr double merging[] = {0.0, 0.12, 0.34};  // pieces are packed up to this part of that memory
constexpr size_t max_sizes = 40;           // largest pieces that are tried
constexpr int rate_rounds = 20;            // halvings of the interval that holds the streaming rate
constexpr int simulated_laps = 4;          // graphs until the schedule repeats itself
constexpr double worth_more_slots = 1.002; // a plan with more memory for slots must be better by this factor

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

// Packs streamed pieces, in order, into segments of at most `most` bytes, or of one piece.
std::vector<StreamSegment> pack(const StreamInput& input, const std::vector<bool>& streamed, uint64_t most) {
    std::vector<StreamSegment> segments;
    for (size_t i = 0; i < streamed.size(); ++i) {
        if (!streamed[i]) {
            continue;
        }
        if (segments.empty() || segments.back().bytes + input.pieces[i].bytes > most) {
            segments.emplace_back();
        }
        segments.back().pieces.push_back(i);
        segments.back().bytes += input.pieces[i].bytes;
        segments.back().copies += input.pieces[i].copies;
    }
    return segments;
}

// Lays the slots one behind the other, from the front again where the memory ends, and notes for each part of a slot
// who has it before. Returns the memory that is used.
uint64_t lay_out(std::vector<StreamSegment>& segments, uint64_t memory) {
    struct Owner {
        uint64_t begin;
        uint64_t end;
        size_t number;
    };
    uint64_t end = 0, used = 0;
    for (StreamSegment& segment : segments) {
        segment.offset = end + segment.bytes <= memory ? end : 0;
        end = segment.offset + segment.bytes;
        used = std::max(used, end);
    }
    std::vector<Owner> owners, next;
    size_t number = 0;
    for (int lap = 0; lap < 2; ++lap) {
        for (StreamSegment& segment : segments) {
            const uint64_t begin = segment.offset, stop = begin + segment.bytes;
            segment.parts.clear();
            next.clear();
            for (const Owner& owner : owners) {
                const uint64_t from = std::max(owner.begin, begin), to = std::min(owner.end, stop);
                if (from >= to) {
                    next.push_back(owner);
                    continue;
                }
                segment.parts.push_back({from - begin, to - begin, number - owner.number});
                if (owner.begin < from) {
                    next.push_back({owner.begin, from, owner.number});
                }
                if (owner.end > to) {
                    next.push_back({to, owner.end, owner.number});
                }
            }
            next.push_back({begin, stop, number++});
            owners.swap(next);
        }
    }
    for (StreamSegment& segment : segments) {
        std::sort(segment.parts.begin(), segment.parts.end(),
                  [](const SlotPart& a, const SlotPart& b) { return a.back > b.back; });
    }
    return used;
}

// The sizes of a largest streamed piece that are worth trying.
std::vector<uint64_t> piece_sizes(const StreamInput& input, uint64_t limit) {
    std::set<uint64_t> sizes;
    for (const Piece& piece : input.pieces) {
        if (piece.bytes > 0 && piece.bytes <= limit) {
            sizes.insert(piece.bytes);
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

// Fills in a plan that streams pieces of at most `largest` bytes through `slots` bytes of slots.
bool fill(const StreamInput& input, const Totals& all, uint64_t largest, uint64_t slots, double merge,
          StreamPlan& plan) {
    const uint64_t taken = input.compute_bytes + input.fixed_bytes + slots;
    if (taken > input.budget || slots > input.largest_slots) {
        return false;
    }
    const uint64_t room = input.budget - taken;
    const uint64_t needed = all.bytes > room ? all.bytes - room : 0;
    uint64_t possible = 0;
    for (const Piece& piece : input.pieces) {
        possible += piece.bytes <= largest ? piece.bytes : 0;
    }
    if (possible < needed) {
        return false;
    }
    const size_t count = input.pieces.size();
    std::vector<bool> streamed(count), tried(count);
    uint64_t bytes = 0;
    const auto cap = static_cast<double>(slots);
    if (all.cost > 0.0) {
        double low = 0.0;
        double high = 64.0 * static_cast<double>(needed) / all.cost;
        for (int round = 0; round < rate_rounds; ++round) {
            const double rate = round == 0 ? high : 0.5 * (low + high);
            const uint64_t got = choose(input, largest, rate, cap, tried);
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
        if (!streamed[i] && input.pieces[i].bytes > 0 && input.pieces[i].bytes <= largest) {
            streamed[i] = true;
            bytes += input.pieces[i].bytes;
        }
    }
    trim(input, needed, bytes, streamed);
    plan.segments = pack(input, streamed, static_cast<uint64_t>(merge * static_cast<double>(slots)));
    plan.slot_bytes = lay_out(plan.segments, slots);
    plan.streamed_bytes = 0;
    for (const StreamSegment& segment : plan.segments) {
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
    double copied = 0.0, computed = 0.0, lap_begin = 0.0;
    if (!input.overlap) {
        for (double seconds : cost) {
            computed += seconds;
        }
        return computed + static_cast<double>(plan.streamed_bytes) * seconds_per_byte;
    }
    std::vector<double> done;  // when each segment's slot was free again
    done.reserve(count * simulated_laps);
    for (int lap = 0; lap < simulated_laps; ++lap) {
        lap_begin = computed;
        computed += cost[0];
        for (size_t i = 0; i < count; ++i) {
            const StreamSegment& segment = plan.segments[i];
            copied += static_cast<double>(segment.copies) * input.copy_cost * seconds_per_cost;
            for (const SlotPart& part : segment.parts) {
                const double free = done.size() >= part.back ? done[done.size() - part.back] : 0.0;
                copied = std::max(copied, free) + static_cast<double>(part.end - part.begin) * seconds_per_byte;
            }
            computed = std::max(computed, copied) + cost[2 * i + 1];
            done.push_back(computed);
            computed += cost[2 * i + 2] + input.segment_cost * seconds_per_cost;
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
    for (uint64_t largest : piece_sizes(input, std::min(input.budget - base, input.largest_slots))) {
        for (double room : roominess) {
            const auto slots = static_cast<uint64_t>(room * static_cast<double>(largest));
            for (double merge : merging) {
                StreamPlan plan;
                plan.minimum_budget = best.minimum_budget;
                if (!fill(input, all, largest, slots, merge, plan)) {
                    continue;
                }
                const double bad = badness(input, all, plan);
                const bool more = plan.slot_bytes > best.slot_bytes;
                if (!best.feasible || bad * (more ? worth_more_slots : 1.0) < least) {
                    least = bad;
                    best = plan;
                }
            }
            if (!input.overlap) {
                break;
            }
        }
    }
    return best;
}

}  // namespace sdcpp
