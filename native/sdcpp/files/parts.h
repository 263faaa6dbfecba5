// The files that a model consists of: one, the shards that an index names, or those of a folder.
#pragma once

#include <string>
#include <vector>

#include "sdcpp/files/input.h"
#include "sdcpp/files/listing.h"

namespace sdcpp::files {

struct Part {
    std::string path;
    std::string prefix;  // what the engine calls the part of a model that the file holds, such as "unet."
    std::vector<std::string> tensors = {};  // that an index puts into the file, by their names there
};

// Returns the files of a model. A file is itself; an index of shards (*.safetensors.index.json) its shards, which lie
// beside it; a folder with a model_index.json the parts of a pipeline in diffusers' layout, each under its own prefix;
// any other folder the one model that it holds. Throws FileError, with the file's name where that is not the path.
std::vector<Part> parts(const std::string& path, const std::string& prefix);

// Throws FileError, with words behind the file's name, unless a file lists what an index puts into it.
void check_part(const Part& part, const Listing& listing);

}  // namespace sdcpp::files
