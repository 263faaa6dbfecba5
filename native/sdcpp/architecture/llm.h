// Language models that encode text, with their vision towers.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "model.h"

namespace sdcpp {

// The sizes of a language model, by reference to the runner's own; those of its vision tower begin at vision_layers.
struct LlmSizes {
    int64_t& num_layers;
    int64_t& hidden_size;
    int64_t& intermediate_size;
    int& num_heads;
    int& num_kv_heads;
    int& head_dim;
    int64_t& vocab_size;
    int& vision_layers;
    int64_t& vision_hidden_size;
    int64_t& vision_intermediate_size;
    int& vision_heads;
    int64_t& vision_out_hidden_size;
    bool mistral;  // which of the two tokenizers
};

// Reads a language model's sizes; a head is as wide as its norm, or 128 where heads are not normalised.
void architecture_llm(const String2TensorStorage& file, const std::string& prefix, LlmSizes sizes);

template <typename Params>
void architecture_llm(const String2TensorStorage& file, const std::string& prefix, Params& params, bool mistral) {
    architecture_llm(
        file, prefix,
        LlmSizes{params.num_layers, params.hidden_size, params.intermediate_size, params.num_heads, params.num_kv_heads,
                 params.head_dim, params.vocab_size, params.vision.num_layers, params.vision.hidden_size,
                 params.vision.intermediate_size, params.vision.num_heads, params.vision.out_hidden_size, mistral});
}

// Returns the layers whose outputs are the text, scaled down where the model has fewer layers than the published one.
std::set<int> architecture_llm_outputs(const std::set<int>& published, int64_t num_layers);

// Throws unless a transformer's tensor takes what the language model gives: the outputs of that many layers, side by
// side.
void llm_fit(const std::map<std::string, ggml_tensor*>& params, const std::string& text, int64_t outputs);

}  // namespace sdcpp
