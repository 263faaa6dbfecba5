// Decides what of a model stays on the device and what is streamed: arithmetic only, no ggml.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sdcpp {

// A stretch of a graph, in the order of computing, whose weights stay or are streamed together.
struct Piece {
    std::string name;
    uint64_t bytes = 0;  // device memory of its weights
    double cost = 0.0;   // its share of the computing, in any unit
    int copies = 1;      // how many it takes to copy it
    uint64_t height = UINT64_MAX;  // where the compute buffer is free while it is computed: from there to the end
};

struct StreamInput {
    std::vector<Piece> pieces;
    uint64_t budget = 0;         // device bytes for everything below and the pieces' weights
    uint64_t compute_bytes = 0;  // the compute buffer, and what else computing takes
    uint64_t compute_buffer = 0; // bytes of the compute buffer, from its begin, in which slots may lie
    uint64_t fixed_bytes = 0;    // weights that are resident in any case
    uint64_t largest_slots = UINT64_MAX;  // bytes that the device gives at once
    uint64_t alignment = 1;      // of the slots; the pieces' bytes are multiples of it
    double launch_cost = 0.0;    // what giving a stretch of the graph to the device adds to the computing
    double copy_cost = 0.0;      // what every copy takes, however small, in the same unit
    bool overlap = true;         // copies and computations run at once
};

// The device passes two marks for each segment: one before it is computed, where all that precedes it has been, and one
// behind it. They are numbered through the graphs, from 0: segment n has 2n and 2n + 1.
//
// A part of a slot, and the mark behind which it is free.
struct SlotPart {
    uint64_t begin = 0;  // bytes from the begin of the slot
    uint64_t end = 0;
    size_t back = 0;     // how many marks before the one behind the slot's own segment; 0: free as the graph begins
};

// Streamed pieces that are copied together, and their slot: where they are copied to.
struct StreamSegment {
    std::vector<size_t> pieces;
    uint64_t bytes = 0;
    int copies = 0;
    bool borrows = false;         // its slot lies in the compute buffer, not in the slots' memory
    uint64_t offset = 0;          // of the slot, there
    std::vector<SlotPart> parts;  // in the order in which they become free
};

struct StreamPlan {
    bool feasible = false;
    uint64_t minimum_budget = 0;  // see smallest_budget
    std::vector<bool> resident;   // for each piece
    std::vector<StreamSegment> segments;
    uint64_t slot_bytes = 0;      // memory of the slots that do not borrow theirs, which share it
    uint64_t resident_bytes = 0;  // with the fixed ones
    uint64_t streamed_bytes = 0;  // copied each time the graph is computed
    uint64_t peak_bytes = 0;      // all that the plan takes, compute buffer included

    uint64_t arena_bytes() const { return resident_bytes + slot_bytes; }
    // Where the last slot ends that lies in the compute buffer; 0: none does.
    uint64_t borrowed_end() const {
        uint64_t end = 0;
        for (const StreamSegment& segment : segments) {
            end = std::max(end, segment.borrows ? segment.offset + segment.bytes : 0);
        }
        return end;
    }
    bool borrows() const { return borrowed_end() > 0; }
};

// Returns the smallest budget that works.
uint64_t smallest_budget(const StreamInput& input);

// Plans for the shortest time over a range of ratios between copying and computing.
//
// What fits stays. Of the rest, pieces are chosen so that the bytes to copy are spread over the graph as the computing
// is: then each copy finds a computation of its length to hide behind, whatever the device's speed. Slots follow one
// another around their memory, so that a copy waits only for those segments whose slots it overwrites. A slot lies in the
// compute buffer where that has been free for longer.
StreamPlan stream_plan(const StreamInput& input);

// Returns how long computing the graph takes once the residents are there, with copies that take seconds_per_byte and
// pieces that take seconds_per_cost.
double stream_seconds(const StreamInput& input, const StreamPlan& plan, double seconds_per_byte,
                      double seconds_per_cost);

}  // namespace sdcpp
