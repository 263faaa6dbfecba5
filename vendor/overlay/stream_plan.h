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
};

struct StreamInput {
    std::vector<Piece> pieces;
    uint64_t budget = 0;         // device bytes for everything below and the pieces' weights
    uint64_t compute_bytes = 0;  // the compute buffer
    uint64_t fixed_bytes = 0;    // weights that are resident in any case
    int max_slots = 4;           // 1: copy and compute cannot overlap
};

// The streamed pieces that are copied into a slot together.
struct StreamSegment {
    std::vector<size_t> pieces;
    uint64_t bytes = 0;
};

struct StreamPlan {
    bool feasible = false;
    uint64_t minimum_budget = 0;  // the smallest budget that works
    std::vector<bool> resident;   // for each piece
    std::vector<StreamSegment> segments;
    int slots = 0;
    uint64_t slot_bytes = 0;
    uint64_t resident_bytes = 0;  // with the fixed ones
    uint64_t streamed_bytes = 0;  // copied each time the graph is computed
    uint64_t peak_bytes = 0;      // all that the plan takes, compute buffer included

    uint64_t arena_bytes() const { return resident_bytes + static_cast<uint64_t>(slots) * slot_bytes; }
};

// Plans for the shortest time over a range of ratios between copying and computing.
//
// What fits stays. Of the rest, pieces are chosen so that the bytes to copy are spread over the graph as the computing
// is: then each copy finds a computation of its length to hide behind, whatever the device's speed.
StreamPlan stream_plan(const StreamInput& input);

// Returns how long computing the graph takes once the residents are there, with copies that take seconds_per_byte and
// pieces that take seconds_per_cost.
double stream_seconds(const StreamInput& input, const StreamPlan& plan, double seconds_per_byte,
                      double seconds_per_cost);

}  // namespace sdcpp
