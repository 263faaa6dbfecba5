// What computing a graph's node costs, next to another one.
#pragma once

#include "ggml.h"

namespace sdcpp {

// Tells whether a device has anything to do for a node.
bool computes(const ggml_tensor* node);
// Returns the seconds that a mid-range card takes for a node that computes; only ratios of them matter.
double cost_of(const ggml_tensor* node);

}  // namespace sdcpp
