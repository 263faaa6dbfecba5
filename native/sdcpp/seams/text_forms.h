// The forms in which tokenizers look at a text. They need Unicode's tables, which the Python layer has.
#pragma once

#include <string>

#include "sdcpp/prompt/pieces.h"

namespace sdcpp {

// Returns a text as CLIP's tokenizer looks at it: in lower case, with runs of whitespace made one space.
std::string clip_form(const std::string& text);
// Returns a text as T5's sentencepiece model looks at it: compatible characters made one (NFKC), control characters
// dropped, runs of whitespace made one space.
std::string t5_form(const std::string& text);

}  // namespace sdcpp
