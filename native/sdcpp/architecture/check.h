// Comparing the networks that were built with the checkpoint, before anything is allocated.
#pragma once

#include <map>
#include <string>

#include "model.h"

namespace sdcpp {

// Throws unless the checkpoint holds every parameter of the modules in its shape and the modules fit each other.
void architecture_check(SDVersion version, const std::map<std::string, ggml_tensor*>& params,
                        const String2TensorStorage& file);

}  // namespace sdcpp
