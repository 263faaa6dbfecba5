#include "sdcpp/architecture/llm.h"

#include <algorithm>

#include "sdcpp/architecture/checkpoint.h"

namespace sdcpp {

using namespace checkpoint;

constexpr int64_t qwen_tokens = 151669;
constexpr int64_t mistral_tokens = 131072;
constexpr int64_t llm_vision_head_width = 80;  // of Qwen2.5-VL's vision tower

void architecture_llm(const String2TensorStorage& file, const std::string& prefix, LlmSizes sizes) {
    const std::string tokens = prefix + ".model.embed_tokens.weight";
    const std::string blocks = prefix + ".model.layers.";
    const std::string attention = blocks + "0.self_attn.";
    sizes.num_layers = layers(file, blocks, 0);
    if (has(file, tokens)) {
        sizes.hidden_size = axis(file, tokens, 0, sizes.hidden_size);
        sizes.vocab_size = token_rows(file, tokens, sizes.mistral ? mistral_tokens : qwen_tokens);
    }
    sizes.intermediate_size = axis(file, blocks + "0.mlp.gate_proj.weight", 1, sizes.intermediate_size);
    sizes.head_dim = static_cast<int>(axis(file, attention + "q_norm.weight", 0, sizes.head_dim));
    const std::string query = attention + "q_proj.weight";
    const std::string key = attention + "k_proj.weight";
    const int64_t query_width = axis(file, query, 1, int64_t{sizes.num_heads} * sizes.head_dim);
    const int64_t key_width = axis(file, key, 1, int64_t{sizes.num_kv_heads} * sizes.head_dim);
    require_multiple(file, attention + "q_norm.weight", sizes.head_dim, 2, "the parts that a rotation turns");
    require_multiple(file, key, key_width, sizes.head_dim, "the width of an attention head");
    require_multiple(file, query, query_width, key_width, "the width of keys and values");
    sizes.num_heads = static_cast<int>(query_width / sizes.head_dim);
    sizes.num_kv_heads = static_cast<int>(key_width / sizes.head_dim);

    const std::string vision = prefix + ".visual.";
    const std::string norm = vision + "blocks.0.norm1.weight";
    if (!has(file, norm)) {
        return;
    }
    sizes.vision_layers = static_cast<int>(layers(file, vision + "blocks.", sizes.vision_layers));
    sizes.vision_hidden_size = axis(file, norm, 0, sizes.vision_hidden_size);
    require_multiple(file, norm, sizes.vision_hidden_size, llm_vision_head_width, "the width of an attention head");
    sizes.vision_heads = static_cast<int>(sizes.vision_hidden_size / llm_vision_head_width);
    sizes.vision_intermediate_size =
        axis(file, vision + "blocks.0.mlp.gate_proj.weight", 1, sizes.vision_intermediate_size);
    sizes.vision_out_hidden_size = axis(file, vision + "merger.mlp.2.weight", 1, sizes.vision_out_hidden_size);
}

std::set<int> architecture_llm_outputs(const std::set<int>& published, int64_t num_layers) {
    const int last = static_cast<int>(num_layers);
    if (published.empty() || last >= *published.rbegin()) {
        return published;
    }
    if (published.size() == 1) {
        return {std::max(last - 1, 1)};  // the published one is the last but one
    }
    std::set<int> outputs;
    for (size_t i = 1; i <= published.size(); ++i) {
        outputs.insert(static_cast<int>(i) * last / static_cast<int>(published.size() + 1));  // evenly spread
    }
    return outputs;
}

void llm_fit(const Params& params, const std::string& text, int64_t outputs) {
    const std::string tokens = "text_encoders.llm.model.embed_tokens.weight";
    require_fit(text, param_axis(params, text, 0), "the language model's output",
                outputs * param_axis(params, tokens, 0));
    if (outputs > 1 && params.count("text_encoders.llm.model.layers.3.input_layernorm.weight") == 0) {
        fail("tensor 'text_encoders.llm.model.layers.3.input_layernorm.weight' is missing from the checkpoint");
    }
    const std::string vision = "text_encoders.llm.visual.merger.mlp.2.weight";
    require_fit(tokens, param_axis(params, tokens, 0), "the vision tower's output", param_axis(params, vision, 1));
}

}  // namespace sdcpp
