// How many passes are computed as lanes of one graph: arithmetic only, no ggml.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "sdcpp/streaming/stream_plan.h"

namespace sdcpp {

// One way of computing some passes: in so many graphs, each of so many lanes, for which this was planned.
struct LaneCandidate {
    size_t lanes = 1;
    size_t graphs = 1;
    StreamInput input;
    StreamPlan plan;  // feasible

    uint64_t copied() const { return graphs * plan.streamed_bytes; }
};

// Returns the index of the candidate that takes least, over a range of ratios between copying and computing: the one
// whose worst time, over the best one that any has at that ratio, is least; of those that take the same the one that
// copies least, with the fewest lanes.
size_t best_lanes(const std::vector<LaneCandidate>& candidates);

// What was chosen for some passes.
struct LaneChoice {
    size_t lanes = 0;             // 0: not known
    size_t passes = 0;            // that it was chosen for
    uint64_t shape = 0;           // of their graphs
    uint64_t room = 0;            // that it was planned with
    uint64_t minimum_budget = 0;  // that its lanes need
    std::string reason;           // why there are not more; empty: there need not be
};

// What was chosen for the last kinds of passes, the choice in use first.
class LaneChoices {
public:
    // Returns what was chosen for passes whose graphs have a shape, where the network may hold `room` bytes. `active`:
    // it is in use, so that passes are what is left of a step or of its pictures, and it changes only when it must.
    LaneChoice known(uint64_t shape, size_t passes, uint64_t room, bool active);
    // Completes a choice, of one lane so far, and remembers it. The candidates are those that are feasible, the one of
    // one lane first; `most` is how many lanes were wanted.
    void choose(const std::vector<LaneCandidate>& candidates, size_t most, LaneChoice& choice);

private:
    std::vector<LaneChoice> choices_;
};

}  // namespace sdcpp
