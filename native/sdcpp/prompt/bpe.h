// Byte pair encoding of one piece of a text.
#pragma once

#include <queue>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace sdcpp {

// Returns a piece's symbols with every pair merged that a vocabulary ranks, the lowest rank first and all its
// occurrences from left to right, in time of n log n, where looking at the whole piece for each merge takes the square.
// ranks maps a pair of symbols to its rank.
template <typename Symbol, typename Ranks>
std::vector<Symbol> bpe_merged(std::vector<Symbol> symbols, const Ranks& ranks) {
    constexpr size_t none = static_cast<size_t>(-1);
    // The rank of a pair, where its left symbol is and how long both are: one of them may be merged otherwise first.
    using Pair = std::tuple<int, size_t, size_t, size_t>;
    std::priority_queue<Pair, std::vector<Pair>, std::greater<Pair>> pairs;
    std::vector<size_t> next(symbols.size()), last(symbols.size());
    const auto add = [&](size_t left) {
        if (left == none || next[left] == none) {
            return;
        }
        const auto found = ranks.find({symbols[left], symbols[next[left]]});
        if (found != ranks.end()) {
            pairs.emplace(found->second, left, symbols[left].size(), symbols[next[left]].size());
        }
    };
    for (size_t i = 0; i < symbols.size(); ++i) {
        last[i] = i == 0 ? none : i - 1;
        next[i] = i + 1 < symbols.size() ? i + 1 : none;
    }
    for (size_t i = 0; i < symbols.size(); ++i) {
        add(i);
    }
    std::vector<size_t> merged;
    while (!pairs.empty()) {
        const int rank = std::get<0>(pairs.top());
        merged.clear();
        while (!pairs.empty() && std::get<0>(pairs.top()) == rank) {
            const auto [same, left, left_size, right_size] = pairs.top();
            pairs.pop();
            const size_t right = next[left];
            if (symbols[left].size() != left_size || right == none || symbols[right].size() != right_size) {
                continue;
            }
            symbols[left] += symbols[right];
            symbols[right].clear();
            next[left] = next[right];
            if (next[left] != none) {
                last[next[left]] = left;
            }
            merged.push_back(left);
        }
        // Pairs that a merge makes come after all that were there, whatever their rank.
        for (const size_t left : merged) {
            if (!symbols[left].empty()) {
                add(last[left]);
                add(left);
            }
        }
    }
    std::vector<Symbol> left;
    for (Symbol& symbol : symbols) {
        if (!symbol.empty()) {
            left.push_back(std::move(symbol));
        }
    }
    return left;
}

}  // namespace sdcpp
