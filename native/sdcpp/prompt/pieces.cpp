#include "sdcpp/prompt/pieces.h"

#include <cstring>

namespace {

constexpr size_t longest_piece = 1000;

bool is_one_of(const char* characters, char c) {
    return c != '\0' && std::strchr(characters, c) != nullptr;
}

char lower(char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

bool is_letter(char c) {
    return lower(c) >= 'a' && lower(c) <= 'z';
}

// Returns the length of the contraction that begins with the apostrophe at a place, or 0.
size_t contraction(const std::string& text, size_t at) {
    for (const char* ending : {"s", "t", "re", "ve", "m", "ll", "d"}) {
        size_t length = 0;
        while (ending[length] != '\0' && at + 1 + length < text.size() &&
               lower(text[at + 1 + length]) == ending[length]) {
            ++length;
        }
        if (ending[length] == '\0') {
            return 1 + length;
        }
    }
    return 0;
}

}  // namespace

namespace sdcpp {

std::string spaces_joined(const std::string& text, const char* spaces) {
    std::string joined;
    for (const char c : text) {
        if (!is_one_of(spaces, c)) {
            joined += c;
        } else if (joined.empty() || joined.back() != ' ') {
            joined += ' ';
        }
    }
    return joined;
}

std::vector<std::string> clip_pieces(const std::string& text) {
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
        const char c = text[at];
        if (is_space(c)) {
            ++at;
            continue;
        }
        size_t length = c == '\'' ? contraction(text, at) : 0;
        if (length == 0 && is_digit(c)) {
            length = 1;
        }
        if (length == 0) {
            const auto belongs = [letters = is_letter(c)](char other) {
                return letters ? is_letter(other) : !is_letter(other) && !is_digit(other) && !is_space(other);
            };
            while (length < longest_piece && at + length < text.size() && belongs(text[at + length])) {
                ++length;
            }
        }
        pieces.push_back(text.substr(at, length));
        at += length;
    }
    return pieces;
}

}  // namespace sdcpp
