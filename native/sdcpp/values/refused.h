// What a caller asked for cannot be done, and was found out before any work: the message says what can.
#pragma once

#include <stdexcept>

namespace sdcpp {

struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace sdcpp
