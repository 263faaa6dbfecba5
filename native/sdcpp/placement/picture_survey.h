// What drawing a picture takes of the devices, told before any weight is loaded: the engine goes through a whole
// generation, and each of its graphs is laid out and counted instead of computed, for which zeros stand.
#pragma once

#include <map>
#include <string>

#include "ggml.h"
#include "sdcpp/api/sdcpp.h"

namespace sdcpp {

// Of one network.
struct NetworkDemand {
    std::string module;
    std::string network;
    sdcpp_demand_t demand = {};  // but for the texts
};

// By the networks' weights: two may have one name.
using NetworkDemands = std::map<const ggml_context*, NetworkDemand>;

}  // namespace sdcpp
