// What computing a graph's node costs, next to another one.
#pragma once

#include "ggml.h"

namespace sdcpp {

// Tells whether a device has anything to do for a node.
bool computes(const ggml_tensor* node);
// What computing a node takes of any device.
struct Work {
    double flops = 0.0;        // of products and convolutions, whose operands are not counted below
    double moved_bytes = 0.0;  // read and written
};

// Returns what a node that computes takes.
Work work_of(const ggml_tensor* node);
// Returns the seconds that a mid-range card takes for a node that computes; only ratios of them matter.
double cost_of(const ggml_tensor* node);

}  // namespace sdcpp
