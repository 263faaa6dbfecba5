// The configuration of a device: defaults, environment and access by name.
#pragma once

#include <string>

#include "loopback.h"

namespace loopback {

loopback_config default_config();
loopback_config config_from_environment();

// Reads an integer from the environment, `fallback` when it is not set.
int environment_int(const char* name, int fallback);

// Both return false for an unknown name.
bool set_option(loopback_config& config, const std::string& name, double value);
bool get_option(const loopback_config& config, const std::string& name, double& value);

// CPU threads for graphs when the configuration says 0.
int default_threads();

}  // namespace loopback
