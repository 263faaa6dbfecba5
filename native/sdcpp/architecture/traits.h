// What a model can be asked for besides a picture: which options of a generation have an effect on it.
#pragma once

#include <map>
#include <string>

#include "model.h"
#include "sdcpp/api/sdcpp.h"

namespace sdcpp {

// Returns the traits of a model that was built; the family's name lives for ever.
sdcpp_traits_t traits_of(SDVersion version, const std::map<std::string, ggml_tensor*>& params);

// Throws, with one sentence, for a rule of "PATTERN=TYPE,..." whose pattern no tensor's name has.
void type_rules_check(const std::string& rules, const std::map<std::string, ggml_tensor*>& params);

}  // namespace sdcpp
