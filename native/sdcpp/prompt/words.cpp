#include "sdcpp/prompt/words.h"

namespace {

bool is_continuation(char c) {
    return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

// Returns the character of UTF-8 that begins at a place; a broken one is some other than it might be.
char32_t character(const std::string& text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    if (byte(at) < 0x80) {
        return byte(at);
    }
    char32_t value = byte(at) >= 0xF0 ? byte(at) & 0x07 : byte(at) >= 0xE0 ? byte(at) & 0x0F : byte(at) & 0x1F;
    for (size_t i = at + 1; i < text.size() && is_continuation(text[i]); ++i) {
        value = value << 6 | (byte(i) & 0x3F);
    }
    return value;
}

// Tells whether two neighbours like this one are of one word.
bool joins(char32_t c) {
    if (c < 0x80) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    }
    // Thai, Lao, Tibetan; Myanmar; Khmer: written without spaces between words, as is all from 0x2E80 on.
    if ((c >= 0x0E00 && c <= 0x0FFF) || (c >= 0x1000 && c <= 0x109F) || (c >= 0x1780 && c <= 0x17FF)) {
        return false;
    }
    return c == 0xAA || c == 0xB5 || c == 0xBA || (c >= 0xC0 && c < 0x2000 && c != 0xD7 && c != 0xF7);
}

// Tells whether a place within a text is between two characters of one word.
bool is_inside_word(const std::string& text, size_t at) {
    if (at == 0 || at >= text.size()) {
        return false;
    }
    size_t before = at - 1;
    while (before > 0 && is_continuation(text[before])) {
        --before;
    }
    return joins(character(text, before)) && joins(character(text, at));
}

// Returns where a name stands first from a place on, npos for nowhere.
size_t find_name(const std::string& text, const std::string& name, size_t from) {
    size_t at = text.find(name, from);
    while (at != std::string::npos && (is_inside_word(text, at) || is_inside_word(text, at + name.size()))) {
        at = text.find(name, at + 1);
    }
    return at;
}

}  // namespace

namespace sdcpp {

std::vector<std::string> split_at_names(const std::string& text, const std::vector<std::string>& names) {
    std::vector<size_t> next(names.size(), 0);  // where each name stands next; looked for once it is passed
    for (size_t i = 0; i < names.size(); ++i) {
        next[i] = names[i].empty() ? std::string::npos : find_name(text, names[i], 0);
    }
    std::vector<std::string> pieces;
    size_t at = 0;
    while (at < text.size()) {
        size_t first = std::string::npos, length = 0;
        for (size_t i = 0; i < names.size(); ++i) {
            if (next[i] != std::string::npos && next[i] < at) {
                next[i] = find_name(text, names[i], at);
            }
            if (next[i] < first || (next[i] == first && first != std::string::npos && names[i].size() > length)) {
                first = next[i];
                length = names[i].size();
            }
        }
        if (first == std::string::npos) {
            pieces.push_back(text.substr(at));
            break;
        }
        if (first > at) {
            pieces.push_back(text.substr(at, first - at));
        }
        pieces.push_back(text.substr(first, length));
        at = first + length;
    }
    return pieces;
}

}  // namespace sdcpp
