// Computes graphs with their weights copied meanwhile, or in turn.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml-backend.h"
#include "sdcpp/streaming/arena.h"
#include "sdcpp/streaming/copy_queue.h"
#include "sdcpp/streaming/scan.h"
#include "sdcpp/streaming/stream_plan.h"

namespace sdcpp {

// Nodes that are given to the device at once.
struct Launch {
    int begin = 0;
    int end = 0;
    bool streamed = false;       // they are the segments of the next slot, which must have been filled
    std::vector<Weight*> loads;  // residents that are copied for them

    // Tells whether it has no nodes: the graph leaves their layers out, whose slots are filled for those that do not.
    bool empty() const { return begin == end; }
};

// Divides the scanned graph at its slots, and between them where many residents have to be loaded, and for a long graph
// into its parts (streaming/long_graphs.h).
std::vector<Launch> launches(const Scan& scan, const StreamPlan& plan, std::vector<Weight>& weights,
                             const ggml_cgraph* graph, size_t parts);

class Executor {
public:
    Executor(ggml_backend_t compute, CopyQueue& queue, const StreamPlan& plan)
        : compute_(compute), queue_(queue), plan_(plan) {}

    // Computes a graph of some parts and lanes; `cancelled` is asked between two launches, of which the host gives the
    // device no more than a part's ahead.
    ggml_status compute(ggml_cgraph* graph, const std::vector<Launch>& launches, size_t parts, size_t lanes,
                        bool (*cancelled)());

    // Says that the host has built the next graph, for which it took a while.
    void note_gap();
    // Says that there will be no next graph for now.
    void end_gap() { end_ = 0.0; }
    // Returns what a pass waited for copies in seconds; negative: not measured.
    double stall_seconds() const { return stall_seconds_; }
    // Measures that again.
    void measure_stall() { stall_seconds_ = -1.0; }

private:
    ggml_status compute_overlapped(ggml_cgraph* graph, const std::vector<Launch>& launches, size_t parts,
                                   size_t lanes, bool (*cancelled)());
    ggml_status give(ggml_cgraph* graph, const Launch& launch, size_t lanes, uint64_t filling);
    ggml_status compute_in_turn(ggml_cgraph* graph, const std::vector<Launch>& launches, bool (*cancelled)());

    ggml_backend_t const compute_;
    CopyQueue& queue_;
    const StreamPlan& plan_;
    double stall_seconds_ = -1.0;
    double end_ = 0.0;            // when the last graph ended; 0: not known
    double gap_seconds_[2] = {};  // what the host took from then to the next one, the last two times
};

}  // namespace sdcpp
