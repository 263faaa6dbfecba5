// What computing a graph's node costs, next to another one.
#pragma once

#include "ggml-backend.h"
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
// Returns how many times as fast as that card a device is, by its memory's rate; 0: it does not say.
double speed_of(ggml_backend_dev_t dev);

}  // namespace sdcpp
