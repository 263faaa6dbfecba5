// A model's files made one file of another type or format, tensor by tensor: memory holds one of them at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sdcpp/api/sdcpp.h"

namespace sdcpp {

// What became of one tensor.
struct Converted {
    std::string name;    // in the new file
    std::string from;    // type
    std::string to;      // type; "": it is left out
    std::string reason;  // why it is not of the type that was asked for, or left out; "" otherwise
    uint64_t bytes = 0;  // in the new file
};

// Converts, and returns what became of each tensor, in the file's order. What is written of the target when it throws
// is the caller's to remove. Throws Refused for what cannot be done, before anything is written; FileError; Cancelled.
std::vector<Converted> convert_model(const sdcpp_convert_params_t& params);

}  // namespace sdcpp
