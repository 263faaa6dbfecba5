// Graphs that a device computes for long: they are given to it in parts, between which a run can be cancelled. Of a graph
// that was given to it whole a device cannot be told to stop.
#pragma once

#include <cstddef>

#include "ggml-backend.h"

namespace sdcpp {

struct Device;

// Returns what computing a graph takes (streaming/cost.h).
double cost_of_graph(ggml_cgraph* graph);
// Returns into how many parts of about equal length a graph is divided, so that each takes a tenth of a second as far as
// the device's last graphs tell; 1: it is short, or the first one.
// `cost`: of its nodes (streaming/cost.h).
size_t parts_of(const Device& device, double cost);
// Notes in how many seconds a device has computed a graph.
void note_seconds(Device& device, double cost, double seconds);
// Computes a graph on a device, in its parts: they end where the engine says that a graph may be divided. `cancelled` is
// asked between them.
ggml_status compute_in_parts(Device& device, ggml_backend_t backend, ggml_cgraph* graph, bool (*cancelled)());

}  // namespace sdcpp
