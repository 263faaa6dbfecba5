// The prompt's pieces as a library of its own, so that tests can compare them with a reference.
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "sdcpp/prompt/attention.h"
#include "sdcpp/prompt/bpe.h"
#include "sdcpp/prompt/pieces.h"
#include "sdcpp/prompt/vocabulary.h"
#include "sdcpp/prompt/words.h"

namespace {

std::vector<std::pair<std::string, float>> found;

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
// cdef begin

// Finds the stretches of a prompt and returns how many there are, or -1 where it throws; its message is the first then.
int prompt_attention(const char* text);
// Finds CLIP's pieces of a text and returns how many there are.
int prompt_pieces(const char* text);
// Splits a text at names, each on a line, and returns how many pieces there are.
int prompt_words(const char* text, const char* names);
// Joins the spaces of a text: ASCII whitespace, or only ' '. Returns 1.
int prompt_spaces(const char* text, bool all);
// Merges a text of one-byte symbols by pairs, each "LEFT RIGHT" on a line, the first the lowest rank; returns how many
// symbols are left.
int prompt_bpe(const char* text, const char* pairs);
// Returns one text that was found last, with its weight.
const char* prompt_found(int index, float* weight);

// cdef end

int prompt_attention(const char* text) {
    try {
        found = sdcpp::prompt_attention(text);
    } catch (const std::runtime_error& error) {
        found = {{error.what(), 0.0f}};
        return -1;
    }
    return static_cast<int>(found.size());
}

int prompt_pieces(const char* text) {
    found.clear();
    for (const std::string& piece : sdcpp::clip_pieces(text)) {
        found.emplace_back(piece, 1.0f);
    }
    return static_cast<int>(found.size());
}

int prompt_words(const char* text, const char* names) {
    std::vector<std::string> all;
    std::istringstream lines(names);
    for (std::string line; std::getline(lines, line);) {
        all.push_back(line);
    }
    found.clear();
    for (const std::string& piece : sdcpp::split_at_names(text, all)) {
        found.emplace_back(piece, 1.0f);
    }
    return static_cast<int>(found.size());
}

int prompt_spaces(const char* text, bool all) {
    found = {{all ? sdcpp::spaces_joined(text) : sdcpp::spaces_joined(text, " "), 1.0f}};
    return 1;
}

int prompt_bpe(const char* text, const char* pairs) {
    const auto wide = [](const std::string& symbol) { return std::u32string(symbol.begin(), symbol.end()); };
    sdcpp::SymbolMap<std::pair<std::u32string, std::u32string>> ranks;
    std::istringstream lines(pairs);
    int rank = 0;
    for (std::string left, right; lines >> left >> right; ++rank) {
        const std::pair pair(wide(left), wide(right));
        if (ranks.find(pair) == ranks.end()) {
            ranks[pair] = rank;
        }
    }
    std::vector<std::u32string> symbols;
    for (const char* at = text; *at != '\0'; ++at) {
        symbols.emplace_back(1, *at);
    }
    found.clear();
    for (const std::u32string& symbol : sdcpp::bpe_merged(symbols, ranks)) {
        found.emplace_back(std::string(symbol.begin(), symbol.end()), 1.0f);
    }
    return static_cast<int>(found.size());
}

const char* prompt_found(int index, float* weight) {
    *weight = found[static_cast<size_t>(index)].second;
    return found[static_cast<size_t>(index)].first.c_str();
}

}  // extern "C"
