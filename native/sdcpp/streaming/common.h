// Small things that the files of this folder share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>

#include "ggml-backend.h"

namespace sdcpp {

constexpr double gib = 1024.0 * 1024.0 * 1024.0;

// Returns total - part, or 0 when the part is larger.
inline uint64_t saturating_sub(uint64_t total, uint64_t part) {
    return total > part ? total - part : 0;
}

// Returns a number of bytes as text in GiB, rounded up: a budget that is named so is enough.
inline std::string in_gib(uint64_t bytes) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.4f", std::ceil(static_cast<double>(bytes) / gib * 1e4) / 1e4);
    return text;
}

// Tells whether a device belongs to one of some backends.
template <size_t count>
bool is_one_of(const char* const (&names)[count], ggml_backend_dev_t dev) {
    const std::string name = ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev));
    return std::any_of(names, names + count, [&](const char* known) { return name == known; });
}

}  // namespace sdcpp
