// The weights of a prompt's words: "(word:1.3)", "((word))", "[word]", escapes and BREAK, as AUTOMATIC1111's web UI
// reads them, which is what people's prompts are written for.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace sdcpp {

// The text of a chunk's end, which the engine knows by its weight.
inline const char* const break_text = "BREAK";
constexpr float break_weight = -1.0f;

// Returns the stretches of a prompt with their weights, neighbours of equal weight joined; one empty stretch for a
// prompt without any. A "BREAK" that stands alone is one with the weight -1. Rules: "(" and ")" weigh by 1.1, "[" and
// "]" by 1 / 1.1, "(text:NUMBER)" by the number; a bracket that is not closed holds to the end, one that was not opened
// is text, and so is ":NUMBER)" without a bracket; a backslash takes a bracket or a backslash behind it literally and
// is dropped anywhere else. Throws Refused where NUMBER is none, or none that a float can hold, and
// where text stands in more than 500 brackets.
std::vector<std::pair<std::string, float>> prompt_attention(const std::string& text);

}  // namespace sdcpp
