// What a file was made for, told from the names and shapes of its tensors, for the message that it does not fit.
#pragma once

#include <string>

#include "sdcpp/lora/file.h"

namespace sdcpp {

// Returns a phrase: "it is a LoRA for SDXL", "it is no LoRA but a text encoder".
std::string made_for(LoraFile& file);

}  // namespace sdcpp
