// Decides what of a model stays on the device and what is streamed: arithmetic only, no ggml.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sdcpp {

// Seconds of copying for one second of computing: plans are compared over all of these.
constexpr double copy_ratios[] = {0.25, 0.5, 1.0, 2.0, 4.0};

// A run of a graph's nodes with the weights that it needs, which stay on the device or are streamed as one.
struct Segment {
    std::string name;
    uint64_t bytes = 0;            // device memory of its weights
    double cost = 0.0;             // its share of the computing, in any unit
    int copies = 1;                // how many it takes to copy it
    uint64_t height = UINT64_MAX;  // where the compute buffer is free while it is computed: from there to the end
};

struct StreamInput {
    std::vector<Segment> segments;
    uint64_t budget = 0;                   // device bytes for everything below and the segments' weights
    uint64_t compute_bytes = 0;            // the compute buffer, and what else computing takes
    uint64_t compute_buffer = 0;           // bytes of the compute buffer, from its begin, in which slots may lie
    uint64_t fixed_bytes = 0;              // weights that are resident in any case
    uint64_t largest_buffer = UINT64_MAX;  // bytes that the device gives at once
    uint64_t alignment = 1;                // of the slots; the segments' bytes are multiples of it
    double launch_cost = 0.0;              // what giving nodes to the device once more adds to the computing
    double copy_cost = 0.0;                // what every copy takes, however small, in the same unit
    bool overlap = true;                   // copies and computations run at once
};

// Slots are filled one after another, each once a graph. Fillings are numbered through the graphs, from 0, and the
// device passes two marks for each: 2n, where all that precedes the segments of filling n has been computed, and 2n +
// 1, where they have.
//
// A part of a slot, and the mark behind which it is free.
struct SlotPart {
    uint64_t begin = 0;  // bytes from the begin of the slot
    uint64_t end = 0;
    size_t back = 0;  // how many marks before the one behind the slot's own filling; 0: free as the graph begins
};

// A place on the device that streamed segments are copied to, all of them at once.
struct Slot {
    std::vector<size_t> segments;
    uint64_t bytes = 0;
    int copies = 0;
    bool borrows = false;         // it lies in the compute buffer, not in the slots' own memory
    uint64_t offset = 0;          // there
    std::vector<SlotPart> parts;  // in the order in which they become free
};

struct StreamPlan {
    bool feasible = false;
    uint64_t minimum_budget = 0;  // see smallest_budget
    std::vector<bool> resident;   // for each segment
    std::vector<Slot> slots;
    uint64_t slot_bytes = 0;      // memory of the slots that do not borrow theirs, which share it
    uint64_t resident_bytes = 0;  // with the fixed ones
    uint64_t streamed_bytes = 0;  // copied each time the graph is computed
    uint64_t peak_bytes = 0;      // all that the plan takes, compute buffer included

    uint64_t arena_bytes() const { return resident_bytes + slot_bytes; }
    // Where the last slot ends that lies in the compute buffer; 0: none does.
    uint64_t borrowed_end() const {
        uint64_t end = 0;
        for (const Slot& slot : slots) {
            end = std::max(end, slot.borrows ? slot.offset + slot.bytes : 0);
        }
        return end;
    }
    bool borrows() const { return borrowed_end() > 0; }
};

// Returns the smallest budget that works.
uint64_t smallest_budget(const StreamInput& input);

// Plans for the shortest time over a range of ratios between copying and computing.
//
// What fits stays. Of the rest, segments are chosen so that the bytes to copy are spread over the graph as the
// computing is: then each copy finds a computation of its length to hide behind, whatever the device's speed. Slots
// follow one another around their memory, so that a copy waits only for the segments whose slots it overwrites. A slot
// lies in the compute buffer where that has been free for longer.
StreamPlan stream_plan(const StreamInput& input);

// Returns how long computing the graph takes once the residents are there, with copies that take seconds_per_byte and
// segments that take seconds_per_cost.
double stream_seconds(const StreamInput& input, const StreamPlan& plan, double seconds_per_byte,
                      double seconds_per_cost);

}  // namespace sdcpp
