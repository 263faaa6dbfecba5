#include "sdcpp/lora/targets.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "sdcpp/lora/aliases.h"
#include "util.h"

namespace {

using sdcpp::Part;
using sdcpp::Target;

void erase_all(std::string& text, const std::string& part) {
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at)) {
        text.erase(at, part.size());
    }
}

// Returns a name as all spellings agree on it: some write dots, some underscores, some both.
std::string canonical(std::string name) {
    erase_all(name, ".processor");
    std::string text;
    for (const char c : name) {
        const char plain = c == '.' ? '_' : c;
        if (plain != '_' || (!text.empty() && text.back() != '_')) {
            text += plain;
        }
    }
    return text;
}

// Returns the name of the layer that a tensor belongs to, and whether it is the layer's bias.
std::pair<std::string, bool> layer_of(const std::string& tensor) {
    for (const char* suffix : {".weight", ".bias", ".scale", ".gamma"}) {
        if (ends_with(tensor, suffix)) {
            return {tensor.substr(0, tensor.size() - std::string(suffix).size()), std::string(suffix) == ".bias"};
        }
    }
    return {tensor, false};
}

}  // namespace

namespace sdcpp {

bool of_text_encoder(const std::string& tensor) {
    return starts_with(tensor, "cond_stage_model.") || starts_with(tensor, "text_encoders.");
}

std::optional<int64_t> part_row(const Target& target, int64_t rows, int64_t columns, int64_t own_rows) {
    int64_t first = 0;
    switch (target.part) {
        case Part::whole:
            return own_rows == rows ? std::optional<int64_t>(0) : std::nullopt;
        case Part::query:
            break;
        case Part::key:
            // Keys and values may have fewer heads than queries have.
            first = target.fused == Fused::qkv_mlp ? columns : rows - 2 * own_rows;
            break;
        case Part::value:
            first = target.fused == Fused::qkv_mlp ? 2 * columns : rows - own_rows;
            break;
        case Part::qkv:
            if (own_rows != 3 * columns) {
                return std::nullopt;
            }
            break;
        case Part::mlp:
            first = 3 * columns;
            if (first + own_rows != rows) {
                return std::nullopt;
            }
            break;
    }
    const bool one = target.part == Part::query || target.part == Part::key || target.part == Part::value;
    if (one && target.fused == Fused::qkv_mlp && own_rows != columns) {
        return std::nullopt;
    }
    return first < 0 || first + own_rows > rows ? std::nullopt : std::optional<int64_t>(first);
}

// A prefix that says which of the model's components are meant, in the order in which they are tried.
struct Targets::Scope {
    std::string prefix;
    std::vector<Component> of;
};

const Targets::Scope* Targets::scopes() {
    // Every prefix that fits is tried until a module is found, so that "transformer." is no trap for
    // "transformer_blocks.0". The empty prefix ends the list.
    static const std::vector<Scope> list = {
        {"lora_unet_", {diffusion}},
        {"lora_transformer_", {diffusion}},
        {"lora_te1_", {clip_l, llm, t5}},
        {"lora_te2_", {clip_g, t5}},
        {"lora_te3_", {t5}},
        {"lora_te_", {clip_l, llm, t5}},
        {"lora_vae_", {vae}},
        {"lycoris_unet_", {diffusion}},
        {"lycoris_text_encoder_2_", {clip_g, t5}},
        {"lycoris_text_encoder_", {clip_l, llm, t5}},
        {"lycoris_", {diffusion, clip_l, clip_g, t5, llm}},
        {"lora_", {diffusion, clip_l, clip_g, t5, llm}},
        {"lora_weights_unet_", {diffusion}},  // PhotoMaker
        {"model_diffusion_model_", {diffusion}},
        {"diffusion_model_", {diffusion}},
        {"unet_", {diffusion}},
        {"transformer_", {diffusion}},
        {"dit_", {diffusion}},
        {"net_", {diffusion}},
        {"text_encoders_clip_l_transformer_", {clip_l}},
        {"text_encoders_clip_g_transformer_", {clip_g}},
        {"text_encoders_t5xxl_transformer_", {t5}},
        {"text_encoders_llm_", {llm}},
        {"text_encoder_1_", {clip_l, llm, t5}},
        {"text_encoder_2_", {clip_g, t5}},
        {"text_encoder_3_", {t5}},
        {"text_encoder_", {clip_l, llm, t5}},
        {"conditioner_embedders_0_transformer_", {clip_l}},
        {"conditioner_embedders_1_transformer_", {clip_g}},
        {"cond_stage_model_1_transformer_", {clip_g}},
        {"cond_stage_model_transformer_", {clip_l}},
        {"clip_l_transformer_", {clip_l}},
        {"clip_g_transformer_", {clip_g}},
        {"t5xxl_transformer_", {t5}},
        {"clip_l_", {clip_l}},
        {"clip_g_", {clip_g}},
        {"t5xxl_", {t5}},
        {"llm_", {llm}},
        {"te1_", {clip_l, llm, t5}},
        {"te2_", {clip_g, t5}},
        {"te3_", {t5}},
        {"te_", {clip_l, llm, t5}},
        {"first_stage_model_", {vae}},
        {"vae_", {vae}},
        {"", {diffusion, clip_l, clip_g, t5, llm, vae}},
    };
    return list.data();
}

Targets::Targets(const std::map<std::string, ggml_tensor*>& tensors, bool high_noise) {
    const std::vector<std::pair<std::string, Component>> prefixes = {
        {high_noise ? "model.high_noise_diffusion_model." : "model.diffusion_model.", diffusion},
        {"cond_stage_model.1.transformer.", clip_g},
        {"cond_stage_model.transformer.", clip_l},
        {"text_encoders.clip_l.transformer.", clip_l},
        {"text_encoders.clip_g.transformer.", clip_g},
        {"text_encoders.t5xxl.transformer.", t5},
        {"text_encoders.llm.", llm},
        {"first_stage_model.", vae},
    };
    std::map<std::pair<Component, std::string>, Target> modules;
    int vae_levels = 0;
    for (const auto& entry : tensors) {
        const std::string& name = entry.first;
        for (const auto& [prefix, component] : prefixes) {
            // The projection is kept transposed and has no layer of its own.
            if (!starts_with(name, prefix) || ends_with(name, "text_projection")) {
                continue;
            }
            const auto [path, is_bias] = layer_of(name.substr(prefix.size()));
            Target& target = modules[{component, path}];
            (is_bias ? target.bias : target.weight) = name;
            if (const std::string up = "decoder.up."; component == vae && starts_with(path, up)) {
                vae_levels = std::max(vae_levels, layer_number(path.substr(up.size())) + 1);
            }
            break;
        }
    }
    for (const auto& module : modules) {
        const Component component = module.first.first;
        const std::string& path = module.first.second;
        auto emit = [&](const std::string& name, const Alias& alias) {
            Target target = module.second;
            target.part = alias.part;
            target.fused = alias.fused;
            target.halves_swapped = alias.halves_swapped;
            target.on_output = alias.on_output;
            known[component].emplace(canonical(name), target);
        };
        emit(path, {});
        switch (component) {
            case diffusion:
                unet_aliases(path, emit);
                transformer_aliases(path, emit);
                break;
            case vae:
                vae_aliases(path, vae_levels, emit);
                break;
            default:
                text_aliases(path, emit);
        }
    }
}

const Target* Targets::find(const std::string& module) const {
    std::string name = canonical(module);
    const std::string peft = "base_model_model_";
    if (starts_with(name, peft)) {
        name.erase(0, peft.size());
    }
    for (const Scope* scope = scopes();; ++scope) {
        if (starts_with(name, scope->prefix)) {
            const std::string path = name.substr(scope->prefix.size());
            // "lora_unet__layers_0": an empty level between prefix and name.
            const std::string trimmed = path.substr(std::min(path.find_first_not_of('_'), path.size()));
            for (const Component component : scope->of) {
                const auto found = known[component].find(trimmed);
                if (found != known[component].end() && !found->second.weight.empty()) {
                    return &found->second;
                }
            }
        }
        if (scope->prefix.empty()) {
            return nullptr;
        }
    }
}

}  // namespace sdcpp
