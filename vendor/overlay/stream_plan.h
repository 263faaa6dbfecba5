// Decides what of a model stays on the device and what is streamed: arithmetic only, no ggml.
#pragma once

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
};

struct StreamInput {
    std::vector<Piece> pieces;
    uint64_t budget = 0;         // device bytes for everything below and the pieces' weights
    uint64_t compute_bytes = 0;  // the compute buffer
    uint64_t fixed_bytes = 0;    // weights that are resident in any case
    uint64_t largest_slots = UINT64_MAX;  // bytes that the device gives at once
    double segment_cost = 0.0;   // what every segment adds to the computing
    double copy_cost = 0.0;      // what every copy takes, however small, in the same unit
    bool overlap = true;         // copies and computations run at once
};

// A part of a slot, which an earlier segment had last.
struct SlotPart {
    uint64_t begin = 0;  // bytes from the begin of the slot
    uint64_t end = 0;
    size_t back = 0;     // how many segments earlier, counted through the graphs
};

// Streamed pieces that are copied together, and their slot: where in the slots' memory they are copied to.
struct StreamSegment {
    std::vector<size_t> pieces;
    uint64_t bytes = 0;
    int copies = 0;
    uint64_t offset = 0;
    std::vector<SlotPart> parts;  // in the order in which they become free
};

struct StreamPlan {
    bool feasible = false;
    uint64_t minimum_budget = 0;  // the smallest budget that works
    std::vector<bool> resident;   // for each piece
    std::vector<StreamSegment> segments;
    uint64_t slot_bytes = 0;      // memory of all slots, which share it
    uint64_t resident_bytes = 0;  // with the fixed ones
    uint64_t streamed_bytes = 0;  // copied each time the graph is computed
    uint64_t peak_bytes = 0;      // all that the plan takes, compute buffer included

    uint64_t arena_bytes() const { return resident_bytes + slot_bytes; }
};

// Plans for the shortest time over a range of ratios between copying and computing.
//
// What fits stays. Of the rest, pieces are chosen so that the bytes to copy are spread over the graph as the computing
// is: then each copy finds a computation of its length to hide behind, whatever the device's speed. Slots follow one
// another around their memory, so that a copy waits only for those segments whose slots it overwrites.
StreamPlan stream_plan(const StreamInput& input);

// Returns how long computing the graph takes once the residents are there, with copies that take seconds_per_byte and
// pieces that take seconds_per_cost.
double stream_seconds(const StreamInput& input, const StreamPlan& plan, double seconds_per_byte,
                      double seconds_per_cost);

}  // namespace sdcpp
