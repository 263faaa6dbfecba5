// Files that hold one part of a model: whether the model has that part.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model.h"
#include "stable-diffusion.h"

namespace sdcpp {

// A part that comes in a file of its own, as what its tensors' names begin with.
using OwnFile = std::vector<std::string>;

// Returns the parts that do.
std::vector<OwnFile> own_files(const sd_ctx_params_t& params);

// Throws, with one sentence that names a tensor, for a part of which the model takes nothing.
void own_files_check(const std::vector<OwnFile>& own, const std::map<std::string, ggml_tensor*>& params,
                     const String2TensorStorage& file);

}  // namespace sdcpp
