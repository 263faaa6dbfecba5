// What the engine's loader asks for: the tensors of a model's files, under its names.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "sdcpp/files/values.h"

struct TensorStorage;

namespace sdcpp::files {

// Reads what a file, an index of shards or a folder lists, and appends the files that hold it to paths and its tensors
// to tensors, with the prefix where their names do not begin with it. Weights that have scales beside them are read
// with these applied. Throws FileError, whose text begins with the path. shapes: gets those that the engine cannot have,
// of no dimension or of more than 4, by name.
using Shapes = std::unordered_map<std::string, std::vector<int64_t>>;
void read_model(const std::string& path, const std::string& prefix, std::vector<std::string>& paths,
                std::vector<TensorStorage>& tensors, Shapes* shapes = nullptr);

}  // namespace sdcpp::files
