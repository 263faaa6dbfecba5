// The pieces of a text that tokenizers look up, found without regular expressions, whose recursion ends the process on
// a long word or a small stack.
#pragma once

#include <cstring>
#include <string>
#include <vector>

namespace sdcpp {

// ASCII whitespace, and no other, as in the classic locale.
inline const char* const ascii_spaces = " \t\n\r\v\f";

// Of ASCII only, whatever the locale: bytes of other characters are neither letters, digits nor spaces, and end a word,
// as a full-width comma before BREAK has to.
inline bool is_space(char c) {
    return c != '\0' && std::strchr(ascii_spaces, c) != nullptr;
}

inline bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

// Returns a text with each run of some characters made one space.
std::string spaces_joined(const std::string& text, const char* spaces = ascii_spaces);

// Returns the pieces of a text that CLIP's merges work on: contractions ('s 't 're 've 'm 'll 'd), runs of ASCII
// letters, single digits, and runs of what is neither letter, digit nor whitespace. A run is cut after 1000 characters,
// since merging takes the square of its length and no vocabulary has a word that long.
std::vector<std::string> clip_pieces(const std::string& text);

}  // namespace sdcpp
