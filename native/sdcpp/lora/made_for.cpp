#include "sdcpp/lora/made_for.h"

#include <algorithm>
#include <vector>

#include "sdcpp/lora/roles.h"
#include "util.h"

namespace {

using namespace sdcpp;

// A family, and parts of names that only its files have, written with underscores.
struct Family {
    const char* name;
    std::vector<const char*> marks;
};

const std::vector<Family> families = {
    {"Flux", {"double_blocks", "single_transformer_blocks", "single_blocks"}},
    {"SD 3", {"joint_blocks", "ff_context"}},
    {"Z-Image", {"noise_refiner", "context_refiner", "layers_0_attention_to_q", "layers_0_attention_qkv"}},
    {"Qwen-Image", {"img_mlp", "txt_mlp", "img_mod", "txt_mod"}},
    {"SD 3, Flux or Qwen-Image", {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}},
    {"Wan", {"self_attn_q", "cross_attn_q", "condition_embedder"}},
    {"SDXL",
     {"lora_te2_", "text_encoder_2_", "add_embedding", "label_emb", "input_blocks_4_1_transformer_blocks_1",
      "input_blocks_7_1_transformer_blocks_1", "down_blocks_2_attentions_0_transformer_blocks_1"}},
    {"SD 1 or 2", {"down_blocks", "up_blocks", "mid_block", "input_blocks", "middle_block"}},
    {"a text encoder", {"text_model_encoder", "text_encoder", "SelfAttention"}},
};

std::string underscored(std::string name) {
    std::replace(name.begin(), name.end(), '.', '_');
    return name;
}

// SD 1 and SD 2 differ in the width of the text that cross-attention reads.
std::string version_of_unet(LoraFile& file) {
    for (const std::string& name : file.names()) {
        const auto named = role_of(name);
        if (!named || !ends_with(underscored(named->module), "attn2_to_k") || named->role != Role::down) {
            continue;
        }
        const std::vector<int64_t> shape = file.shape(name);
        switch (shape.size() > 1 ? shape[1] : 0) {
            case 768:
                return "SD 1";
            case 1024:
                return "SD 2";
            case 2048:
                return "SDXL";
            default:
                return "SD 1 or 2";
        }
    }
    return "SD 1 or 2";
}

}  // namespace

std::string sdcpp::made_for(LoraFile& file) {
    const bool lora = std::any_of(file.names().begin(), file.names().end(), [](const std::string& name) {
        const auto named = role_of(name);
        return named && named->role != Role::scale;
    });
    const auto any_name = [&](const char* mark) {
        return std::any_of(file.names().begin(), file.names().end(),
                           [&](const std::string& name) { return contains(underscored(name), mark); });
    };
    if (!lora) {
        if (any_name("diffusion_model")) {
            return "it is no LoRA but a checkpoint: pass it as the model";
        }
        if (any_name("emb_params") || any_name("string_to_param") || any_name("clip_l")) {
            return "it is no LoRA but a textual inversion: pass it as an embedding";
        }
        if (any_name("decoder_up") || any_name("decoder_mid")) {
            return "it is no LoRA but a VAE: pass it as the VAE";
        }
        return "it is no LoRA of a kind that is known (its first tensor is " + file.names().front() + ")";
    }
    for (const Family& family : families) {
        if (std::any_of(family.marks.begin(), family.marks.end(), any_name)) {
            const std::string name = family.name;
            return "it is a LoRA for " + (name == "SD 1 or 2" ? version_of_unet(file) : name);
        }
    }
    return "it is a LoRA for another model (its first tensor is " + file.names().front() + ")";
}
