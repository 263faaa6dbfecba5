#include "sdcpp/lanes/own_rng.h"

#include <array>  // which the engine's header leaves to others

#include "rng.hpp"
#include "rng_mt19937.hpp"
#include "rng_philox.hpp"

namespace sdcpp {

namespace {

std::shared_ptr<RNG> another(const RNG* rng) {
    if (dynamic_cast<const STDDefaultRNG*>(rng) != nullptr) {
        return std::make_shared<STDDefaultRNG>();
    }
    if (dynamic_cast<const MT19937RNG*>(rng) != nullptr) {
        return std::make_shared<MT19937RNG>();
    }
    return std::make_shared<PhiloxRNG>();
}

}  // namespace

void renew(std::shared_ptr<RNG>& noise, std::shared_ptr<RNG>& sampler) {
    const bool shared = noise == sampler;
    noise = another(noise.get());
    sampler = shared ? noise : another(sampler.get());
}

}  // namespace sdcpp
