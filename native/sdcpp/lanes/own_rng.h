// Generators of noise for pictures that are drawn at the same time.
#pragma once

#include <memory>

class RNG;

namespace sdcpp {

// Replaces two generators, which may be one, by new ones of the same kinds, which are not seeded.
void renew(std::shared_ptr<RNG>& noise, std::shared_ptr<RNG>& sampler);

}  // namespace sdcpp
