#include "sdcpp/prompt/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <locale>
#include <sstream>

#include "sdcpp/prompt/pieces.h"
#include "sdcpp/values/refused.h"


namespace {

using sdcpp::is_digit;
using sdcpp::is_space;

constexpr float round_weight = 1.1f;
constexpr float square_weight = 1 / 1.1f;
constexpr size_t longest_number_shown = 20;
// Around text, which each of them weighs once more: 1.1 to the power of 500 is 5e20.
constexpr size_t most_open = 500;

bool is_word(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

float number(const std::string& digits) {
    // A stream of its own locale, since strtof takes the process's, whose decimal mark may be a comma.
    std::istringstream stream(digits);
    stream.imbue(std::locale::classic());
    float value = 0.0f;
    if (!(stream >> value) || stream.peek() != std::istringstream::traits_type::eof() || !std::isfinite(value)) {
        const bool cut = digits.size() > longest_number_shown;
        throw sdcpp::Refused("prompt: '" + digits.substr(0, longest_number_shown) + (cut ? "..." : "") +
                                 "' is no weight: write a number such as (word:1.2)");
    }
    return value;
}

class Scanner {
public:
    explicit Scanner(const std::string& text) : text(text) {}

    std::vector<std::pair<std::string, float>> scan() {
        while (at < text.size()) {
            step();
        }
        // What is still open holds to the end.
        for (const size_t begin : round) {
            weigh(begin, round_weight);
        }
        for (const size_t begin : square) {
            weigh(begin, square_weight);
        }
        if (found.empty()) {
            found.emplace_back("", 1.0f);
        }
        return joined();
    }

private:
    void step() {
        const char c = text[at];
        std::string digits;
        size_t end = at;
        if (c == '\\') {
            const bool escapes = at + 1 < text.size() && std::strchr("()[]\\", text[at + 1]) != nullptr;
            add_plain(escapes ? std::string(1, text[at + 1]) : "");
            at += escapes ? 2 : 1;
        } else if (c == '(') {
            round.push_back(found.size());
            ++at;
        } else if (c == '[') {
            square.push_back(found.size());
            ++at;
        } else if (c == ':' && !round.empty() && closes(digits, end)) {
            weigh(round.back(), number(digits));
            round.pop_back();
            at = end;
        } else if (c == ')' && !round.empty()) {
            weigh(round.back(), round_weight);
            round.pop_back();
            ++at;
        } else if (c == ']' && !square.empty()) {
            weigh(square.back(), square_weight);
            square.pop_back();
            ++at;
        } else {
            // A mark that means nothing here is text, and so is all before the next mark.
            end = std::min(text.find_first_of("\\()[]:", at + 1), text.size());
            if (std::strchr(":)]", c) != nullptr) {
                end = at + 1;
            }
            add(text.substr(at, end - at));
            at = end;
        }
    }

    // Tells whether ":NUMBER)" stands here, and finds the number's characters and where it ends.
    bool closes(std::string& digits, size_t& end) const {
        size_t next = at + 1;
        const auto skip_spaces = [&] {
            while (next < text.size() && is_space(text[next])) {
                ++next;
            }
        };
        skip_spaces();
        const size_t begin = next;
        if (next < text.size() && (text[next] == '+' || text[next] == '-')) {
            ++next;
        }
        const size_t first = next;
        while (next < text.size() && (is_digit(text[next]) || text[next] == '.')) {
            ++next;
        }
        const size_t last = next;
        skip_spaces();
        if (last == first || next >= text.size() || text[next] != ')') {
            return false;
        }
        digits = text.substr(begin, last - begin);
        end = next + 1;
        return true;
    }

    // Adds a stretch of text, divided at each BREAK that is a word of its own.
    void add(const std::string& stretch) {
        const size_t length = std::strlen(sdcpp::break_text);
        size_t begin = 0;
        for (size_t next = 0; (next = stretch.find(sdcpp::break_text, next)) != std::string::npos;) {
            const size_t behind = next + length;
            if ((next > 0 && is_word(stretch[next - 1])) || (behind < stretch.size() && is_word(stretch[behind]))) {
                next = behind;
                continue;
            }
            size_t end = next, after = behind;
            while (end > begin && is_space(stretch[end - 1])) {
                --end;
            }
            while (after < stretch.size() && is_space(stretch[after])) {
                ++after;
            }
            add_plain(stretch.substr(begin, end - begin));
            found.emplace_back(sdcpp::break_text, sdcpp::break_weight);
            begin = next = after;
        }
        add_plain(stretch.substr(begin));
    }

    void add_plain(std::string stretch) {
        if (round.size() + square.size() > most_open) {
            throw sdcpp::Refused("prompt: more than " + std::to_string(most_open) +
                                 " brackets are open: close them, or write a backslash before each that is text");
        }
        found.emplace_back(std::move(stretch), 1.0f);
    }

    void weigh(size_t begin, float factor) {
        for (size_t i = begin; i < found.size(); ++i) {
            found[i].second *= factor;
        }
    }

    std::vector<std::pair<std::string, float>> joined() {
        std::vector<std::pair<std::string, float>> all;
        for (auto& [stretch, weight] : found) {
            if (!all.empty() && all.back().second == weight) {
                all.back().first += stretch;
            } else {
                all.emplace_back(std::move(stretch), weight);
            }
        }
        return all;
    }

    const std::string& text;
    size_t at = 0;
    std::vector<size_t> round, square;  // the stretches where open brackets begin
    std::vector<std::pair<std::string, float>> found;
};

}  // namespace

namespace sdcpp {

std::vector<std::pair<std::string, float>> prompt_attention(const std::string& text) {
    return Scanner(text).scan();
}

}  // namespace sdcpp
