// Chunks of tokens that several text encoders get side by side.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace sdcpp {

// The tokens of one text for one encoder, padded to whole chunks.
template <typename Tokenizer>
struct Chunks {
    Tokenizer& tokenizer;
    std::vector<int>& tokens;
    std::vector<float>& weights;
    size_t length;  // of a chunk

    void fill(size_t wanted) {
        while (!tokens.empty() && tokens.size() < wanted) {
            std::vector<int> empty;
            std::vector<float> ones;
            tokenizer.pad_tokens(empty, &ones, nullptr, length, length, true);
            tokens.insert(tokens.end(), empty.begin(), empty.end());
            weights.insert(weights.end(), ones.begin(), ones.end());
        }
    }
};
template <typename Tokenizer>
Chunks(Tokenizer&, std::vector<int>&, std::vector<float>&, size_t) -> Chunks<Tokenizer>;

// Gives each encoder as many chunks as the one with the most has, of no text where its own has ended: a text may take
// more tokens of one vocabulary than of another, and the engine reads a chunk of each. An encoder without tokens is none.
template <typename... Tokenizers>
void chunks_even(Chunks<Tokenizers>... chunks) {
    const size_t most = std::max({chunks.tokens.size()...});
    (chunks.fill(most), ...);
}

}  // namespace sdcpp
