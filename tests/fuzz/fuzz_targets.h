// What the fuzzer feeds.
#pragma once

#include <functional>
#include <map>
#include <string>

namespace fuzz {

// Takes an input, which lies in a file as well, and returns whether it was accepted.
using Target = std::function<bool(const std::string& path, const std::string& input)>;

const std::map<std::string, Target>& targets();

}  // namespace fuzz
