// What the fuzzer feeds.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>

namespace fuzz {

struct Target {
    // Takes an input, which lies in a file as well, and returns whether it was accepted.
    std::function<bool(const std::string& path, const std::string& input)> take;
    // An allocation may be so many times as large as the input. Pieces of a text are objects, which a file's numbers
    // are not.
    size_t most;
};

const std::map<std::string, Target>& targets();

}  // namespace fuzz
