#include "sdcpp/streaming/stream_plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <set>

namespace sdcpp {

namespace {

// Seconds of copying what cannot be resident for one second of computing: plans are compared over all of these.
constexpr double ratios[] = {0.25, 0.5, 1.0, 2.0, 4.0};
constexpr double roominess[] = {1.0, 1.07, 1.15, 1.22, 1.34, 1.5, 1.67,
                                2.0, 2.5,  3.0,  4.0,  6.0,  9.0, 13.0};  // memory of the slots, in largest pieces
constexpr double merging[] = {0.0, 0.12, 0.34};  // pieces are packed up to this part of that memory
constexpr size_t max_sizes = 16;           // largest pieces that are tried
constexpr int rate_rounds = 20;            // halvings of the interval that holds the streaming rate
constexpr int simulated_laps = 3;          // graphs until the schedule repeats itself
constexpr double saved_enough = 0.5;       // a piece is streamed when this part of its bytes is saved up
constexpr double worth_more_slots = 1.002; // a plan with more memory for slots must be better by this factor
constexpr double good_enough = 1.045;      // this near to the bound, a plan need not be better

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

uint64_t aligned(const StreamInput& input, uint64_t bytes) {
    return bytes / input.alignment * input.alignment;
}

// Walks through the graph twice, saving up `rate` bytes for each unit of cost, and streams a piece when its bytes are
// saved up; no more are saved than the slots hold, since no more can be copied ahead. Returns the second walk's choice.
uint64_t choose(const StreamInput& input, uint64_t largest, double rate, uint64_t slots, std::vector<bool>& streamed) {
    double saved = 0.0;
    uint64_t bytes = 0;
    for (int lap = 0; lap < 2; ++lap) {
        bytes = 0;
        for (size_t i = 0; i < input.pieces.size(); ++i) {
            const Piece& piece = input.pieces[i];
            saved = std::min(static_cast<double>(slots), saved + rate * piece.cost);
            const bool taken = piece.bytes > 0 && piece.bytes <= largest &&
                               saved >= saved_enough * static_cast<double>(piece.bytes);
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

// Gives the slots their places, and notes what each of their parts waits for.
class Layout {
public:
    // With no buffer no slot lies in the compute buffer.
    Layout(const StreamInput& input, std::vector<StreamSegment>& segments, uint64_t memory, uint64_t buffer)
        : input_(input), segments_(segments), memory_(memory), buffer_(buffer) {}

    // Returns the memory that is used.
    uint64_t lay_out() {
        uint64_t largest = 0;
        for (const StreamSegment& segment : segments_) {
            largest = std::max(largest, segment.bytes);
        }
        // Where two of them do not fit one behind the other, each second one lies at the memory's end.
        const bool at_both_ends = memory_ < 2 * largest;
        uint64_t end = 0, used = 0;
        for (size_t i = 0; i < segments_.size(); ++i) {
            StreamSegment& segment = segments_[i];
            segment.offset = end + segment.bytes <= memory_ ? end : 0;
            const uint64_t last = memory_ - segment.bytes;
            if (at_both_ends && overlap(last, memory_) < overlap(segment.offset, segment.offset + segment.bytes)) {
                segment.offset = last;
            }
            if (!borrow(i)) {
                end = segment.offset + segment.bytes;
                used = std::max(used, end);
                give(segment, behind(i));
            }
        }
        owners_.clear();
        for (size_t number = 0; number < 2 * segments_.size(); ++number) {
            StreamSegment& segment = segments_[number % segments_.size()];
            if (!segment.borrows) {
                segment.parts.clear();
                give(segment, behind(number));
            }
        }
        for (StreamSegment& segment : segments_) {
            std::sort(segment.parts.begin(), segment.parts.end(),
                      [](const SlotPart& a, const SlotPart& b) { return a.back > b.back; });
        }
        return used;
    }

private:
    // Who has a part of the memory, until the device passes a mark.
    struct Owner {
        uint64_t begin;
        uint64_t end;
        size_t mark;
    };

    static size_t behind(size_t segment) { return 2 * segment + 1; }

    // Returns how much a slot there would take of what was given away last.
    uint64_t overlap(uint64_t begin, uint64_t end) const {
        if (owners_.empty()) {
            return 0;
        }
        begin = std::max(begin, owners_.back().begin);
        return std::max(begin, std::min(end, owners_.back().end)) - begin;
    }

    // Gives a slot's memory to its segment, and notes who had it.
    void give(StreamSegment& segment, size_t mark) {
        const uint64_t begin = segment.offset, stop = begin + segment.bytes;
        next_.clear();
        for (const Owner& owner : owners_) {
            const uint64_t from = std::max(owner.begin, begin), to = std::min(owner.end, stop);
            if (from >= to) {
                next_.push_back(owner);
                continue;
            }
            segment.parts.push_back({from - begin, to - begin, mark - owner.mark});
            if (owner.begin < from) {
                next_.push_back({owner.begin, from, owner.mark});
            }
            if (owner.end > to) {
                next_.push_back({to, owner.end, owner.mark});
            }
        }
        next_.push_back({begin, stop, mark});
        owners_.swap(next_);
    }

    // Lays a slot into the compute buffer, where that is free for longer than its place in the slots' memory.
    bool borrow(size_t number) {
        StreamSegment& segment = segments_[number];
        if (segment.bytes > buffer_) {
            return false;
        }
        // One more than the mark that it waits for; 0: for none, as the first slots, so that some always have memory of
        // their own.
        size_t least = free_from(owners_, segment.offset, segment.bytes);
        uint64_t height = 0;
        for (size_t i = segment.pieces.front(); i <= segment.pieces.back(); ++i) {
            height = std::max(height, input_.pieces[i].height);
        }
        const uint64_t top = buffer_ - segment.bytes;
        const uint64_t below = lent_.empty() ? top : lent_.back().begin - std::min(lent_.back().begin, segment.bytes);
        bool found = false;
        for (uint64_t offset : {top, below}) {
            if (offset < height) {
                continue;
            }
            const size_t free = free_from(number, offset, least);
            if (free < least) {
                least = free;
                segment.borrows = found = true;
                segment.offset = offset;
                segment.parts.assign(1, {0, segment.bytes, free == 0 ? 0 : behind(number) + 1 - free});
            }
        }
        if (found) {
            lent_.push_back({segment.offset, segment.offset + segment.bytes, behind(number)});
        }
        return found;
    }

    // Returns when a place is free, as far as others had it: one more than the mark; 0: when the graph begins.
    static size_t free_from(const std::vector<Owner>& owners, uint64_t offset, uint64_t bytes) {
        size_t free = 0;
        for (const Owner& owner : owners) {
            if (owner.begin < offset + bytes && offset < owner.end) {
                free = std::max(free, owner.mark + 1);
            }
        }
        return free;
    }

    // Returns when the compute buffer is free from an offset on, likewise, or something that is not less than `enough`.
    size_t free_from(size_t number, uint64_t offset, size_t enough) const {
        size_t free = free_from(lent_, offset, segments_[number].bytes);
        size_t mark = 2 * number;  // the first one behind the piece that is looked at
        for (size_t i = segments_[number].pieces.front(); i-- > 0 && mark + 1 > free && free < enough;) {
            while (mark > 0 && (mark % 2 == 0 ? i <= segments_[mark / 2 - 1].pieces.back()
                                              : i < segments_[mark / 2].pieces.front())) {
                --mark;
            }
            if (mark + 1 <= free) {
                break;
            }
            if (input_.pieces[i].height > offset) {
                free = mark + 1;
            }
        }
        return free;
    }

    const StreamInput& input_;
    std::vector<StreamSegment>& segments_;
    const uint64_t memory_;
    const uint64_t buffer_;
    std::vector<Owner> owners_, next_;  // of the slots' memory
    std::vector<Owner> lent_;           // of the compute buffer
};

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

// Tells for each piece whether it is streamed, when pieces of at most `largest` bytes go through `slots` bytes of slots;
// false when they are too few.
bool divide(const StreamInput& input, const Totals& all, uint64_t largest, uint64_t slots,
            std::vector<bool>& streamed) {
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
    std::vector<bool> tried(count);
    streamed.assign(count, false);
    uint64_t bytes = 0;
    if (all.cost > 0.0) {
        double low = 0.0;
        double high = 64.0 * static_cast<double>(needed) / all.cost;
        for (int round = 0; round < rate_rounds; ++round) {
            const double rate = round == 0 ? high : 0.5 * (low + high);
            const uint64_t got = choose(input, largest, rate, slots, tried);
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
    return true;
}

// Fills in a plan that streams those pieces.
void fill(const StreamInput& input, const Totals& all, const std::vector<bool>& streamed, uint64_t slots, double merge,
          uint64_t buffer, StreamPlan& plan) {
    plan.segments = pack(input, streamed, static_cast<uint64_t>(merge * static_cast<double>(slots)));
    plan.slot_bytes = Layout(input, plan.segments, slots, buffer).lay_out();
    plan.streamed_bytes = 0;
    for (const StreamSegment& segment : plan.segments) {
        plan.streamed_bytes += segment.bytes;
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
    uint64_t slots;
    double merge;
    uint64_t buffer;
    uint64_t slot_bytes;
    std::array<double, std::size(ratios)> times;
};

// Returns the candidate whose worst time, over the best one that any has at that ratio, is least.
const Candidate& best_of(const std::vector<Candidate>& candidates) {
    std::array<double, std::size(ratios)> reachable;
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
            const StreamSegment& segment = plan.segments[i];
            marks.push_back(computed);
            copied += static_cast<double>(segment.copies) * input.copy_cost * seconds_per_cost;
            for (const SlotPart& part : segment.parts) {
                const double free = part.back == 0               ? lap_begin
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
        best.resident.assign(input.pieces.size(), true);
        best.resident_bytes = input.fixed_bytes + all.bytes;
        best.peak_bytes = base + all.bytes;
        return best;
    }
    const auto must = static_cast<double>(all.bytes - (input.budget - base));
    const uint64_t lendable = aligned(input, input.compute_buffer);
    std::vector<Candidate> candidates;
    std::vector<bool> streamed;
    StreamPlan plan;
    for (uint64_t largest : piece_sizes(input, std::min(input.budget - base, input.largest_slots))) {
        for (double room : roominess) {
            const uint64_t slots = aligned(input, static_cast<uint64_t>(room * static_cast<double>(largest)));
            if (!divide(input, all, largest, slots, streamed)) {
                continue;
            }
            for (double merge : merging) {
                for (uint64_t buffer : {lendable, uint64_t{0}}) {
                    fill(input, all, streamed, slots, merge, buffer, plan);
                    candidates.push_back({streamed, slots, merge, buffer, plan.slot_bytes, {}});
                    for (size_t i = 0; i < std::size(ratios); ++i) {
                        candidates.back().times[i] =
                            stream_seconds(input, plan, ratios[i] / must, 1.0 / all.cost) / std::max(1.0, ratios[i]);
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
        fill(input, all, chosen.streamed, chosen.slots, chosen.merge, chosen.buffer, best);
    }
    return best;
}

}  // namespace sdcpp
