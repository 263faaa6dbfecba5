// What drawing a picture takes of the devices, told before any weight is loaded: the engine goes through a whole
// generation, and each of its graphs is laid out and counted instead of computed, for which zeros stand.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "sdcpp/api/sdcpp.h"

namespace sdcpp {

// (module, network) -> what its graphs take; the texts are the keys'.
using NetworkDemands = std::map<std::pair<std::string, std::string>, sdcpp_demand_t>;

}  // namespace sdcpp
