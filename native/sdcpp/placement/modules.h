// The modules that can be placed, and which of them each network of the engine belongs to.
#pragma once

#include <string>
#include <vector>

namespace sdcpp {

extern const std::vector<std::string> module_names;

// Returns the module of a network by the engine's own description of it, or "" for a LoRA, which belongs to the module
// that it changes. Throws std::runtime_error for a network that is not known.
std::string module_of_network(const std::string& description);

// Returns the name under which the weights of a module's LoRAs are counted.
std::string lora_of(const std::string& module);
// Tells whether a name is one of those.
bool is_lora(const std::string& name);
// Returns the module that a name belongs to, which is a module's or that of its LoRAs.
std::string module_of(const std::string& name);

}  // namespace sdcpp
