// One graph of several that read the same weights.
#pragma once

#include <vector>

#include "ggml.h"
#include "sdcpp/streaming/scan.h"

namespace sdcpp {

constexpr size_t most_lanes = 8;  // more hardly copy less, and the host builds a graph for each

// Returns a graph with the nodes of others, the first segment of each, then the second one of each, and so on; each
// node stays what it was. The scans are of the graphs, in which the same weights are read by the same segments. NULL
// where graphs share nodes.
ggml_cgraph* merge_graphs(ggml_context* tensors, const std::vector<ggml_cgraph*>& graphs,
                          const std::vector<Scan>& scans);

// Returns the numbers of lanes that are worth trying for the passes of some pictures, each of which has so many in a
// step: for each number of graphs the least that does, with those of a picture together.
std::vector<size_t> lane_counts(size_t passes, size_t pictures);

}  // namespace sdcpp
