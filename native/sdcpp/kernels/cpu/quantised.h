// Weights that are kept as codes of some bits, in blocks with factors of their own. What ggml makes floats of them with
// is compiled for any processor; this is for that of a variant.
#pragma once

#include "ggml.h"

namespace sdcpp::cpu {

// Makes floats of so many weights, whole blocks of them; false: of a type that is not known here.
bool quantised_to_floats(float* to, ggml_type type, const char* from, int count);

}  // namespace sdcpp::cpu
