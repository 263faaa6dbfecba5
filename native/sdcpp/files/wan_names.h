// The names that Wan's networks have in diffusers, which the engine does not know, as their makers' names.
#pragma once

#include <functional>
#include <string>

namespace sdcpp::files {

// Tells whether a file lists a tensor of a name.
using Has = std::function<bool(const char* name)>;
// Gives a tensor's own name.
using Renaming = std::string (*)(const std::string& name);

// Returns what gives the tensors of a file their own names: of a transformer, or of an autoencoder, Qwen-Image's too; NULL
// for a file that is neither under diffusers' names.
Renaming wan_renaming(const Has& has);

}  // namespace sdcpp::files
