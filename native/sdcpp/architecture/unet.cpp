#include "sdcpp/architecture/unet.h"

#include <algorithm>

#include "sdcpp/architecture/checkpoint.h"

namespace sdcpp {

using namespace checkpoint;

constexpr int64_t unet_heads = 8;            // of the UNets that fix the heads
constexpr int64_t size_embedding = 6 * 256;  // SDXL's picture sizes in the vector condition
constexpr int max_depth = 16;

int64_t architecture_token_width(const String2TensorStorage& file, int64_t width, bool is_unet) {
    constexpr int64_t sd1 = 768;
    constexpr int64_t sd2 = 1024;
    if (!is_unet || width <= 1 || width == sd1 || width == sd2) {
        return width;
    }
    // SD 2 projects into its transformers with linear layers, SD 1 with convolutions.
    for (const auto& [name, tensor] : file) {
        if (ends_with(name, ".proj_in.weight") &&
            (starts_with(name, "model.diffusion_model.") || starts_with(name, "unet."))) {
            return tensor.n_dims == 2 ? sd2 : sd1;
        }
    }
    return sd1;
}

void architecture_unet(const String2TensorStorage& file, SDVersion version, UnetSizes sizes) {
    const std::string unet = "model.diffusion_model.";
    const std::string first = unet + "input_blocks.0.0.weight";
    if (!has(file, first) || version == VERSION_SVD) {
        return;
    }
    const int64_t channels = group_width(file, first, 3, sizes.model_channels);
    sizes.model_channels = static_cast<int>(channels);
    sizes.time_embed_dim = static_cast<int>(axis(file, unet + "time_embed.0.weight", 1, sizes.time_embed_dim));
    sizes.adm_in_channels = static_cast<int>(axis(file, unet + "label_emb.0.0.weight", 0, sizes.adm_in_channels));
    for (const auto& [name, tensor] : file) {
        if (starts_with(name, unet) && ends_with(name, ".attn2.to_k.weight")) {
            sizes.context_dim = static_cast<int>(axis(file, name, 0, sizes.context_dim));
            break;
        }
    }
    // The distilled UNets number their blocks in a way of their own; their levels and depths are not read.
    if (version == VERSION_SD1_TINY_UNET || version == VERSION_SD2_TINY_UNET || version == VERSION_SDXS_512_DS ||
        version == VERSION_SDXS_09 || version == VERSION_SDXL_SSD1B) {
        return;
    }

    struct Level {
        int mult = 0;
        int blocks = 0;
        int depth = 0;  // 0: no attention
    };
    constexpr size_t max_levels = 4;  // pictures are multiples of 64: 8 for the latent, 2 for each level but the last
    const auto require_heads = [&](const std::string& name, int64_t width) {
        const bool fixed = sd_version_is_sd1(version);
        require_multiple(file, name, width, fixed ? unet_heads : head_width,
                         fixed ? "the attention heads" : "the width of an attention head");
    };
    std::vector<Level> levels(1);
    int index = 1;
    for (;; ++index) {
        const std::string block = unet + "input_blocks." + std::to_string(index) + ".";
        const std::string down = block + "0.op.weight";
        if (has(file, down)) {
            if (levels.size() == max_levels) {
                fail("tensor '%s' begins level %zu of the UNet: at most %zu are supported", down.c_str(),
                     levels.size() + 1, max_levels);
            }
            levels.emplace_back();
            continue;
        }
        const std::string conv = block + "0.in_layers.2.weight";
        if (!has(file, conv)) {
            break;
        }
        Level& level = levels.back();
        const int64_t width = group_width(file, conv, 3, 0);
        require_multiple(file, conv, width, channels, "the channels of the first layer");
        if (++level.blocks > max_res_blocks) {
            fail("tensor '%s' begins block %d of a UNet level: at most %d are supported", conv.c_str(), level.blocks,
                 max_res_blocks);
        }
        if (level.blocks > 1) {
            continue;  // the rest of a level repeats its first block, which architecture_check holds it to
        }
        level.mult = static_cast<int>(width / channels);
        if (levels.size() == 1 && level.mult != 1) {
            fail("tensor '%s' has shape %s: the first level must be as wide as the first layer, %lld channels",
                 conv.c_str(), shape_text(*find(file, conv)).c_str(), static_cast<long long>(channels));
        }
        const std::string blocks = block + "1.transformer_blocks.";
        level.depth = count(file, blocks, ".attn1.to_q.weight", max_depth);
        if (level.depth > 0) {
            require_heads(conv, width);
        }
    }
    if (levels.back().blocks == 0) {
        fail("tensor '%sinput_blocks.%d.0.in_layers.2.weight' is missing from the checkpoint", unet.c_str(), index);
    }

    const int middle = count(file, unet + "middle_block.1.transformer_blocks.", ".attn1.to_q.weight", max_depth);
    if (middle > 0) {
        require_heads(unet + "middle_block.0.in_layers.2.weight", levels.back().mult * channels);
    }
    sizes.num_res_blocks = levels.front().blocks;
    sizes.channel_mult.clear();
    sizes.attention_resolutions.clear();
    sizes.transformer_depth.clear();
    for (size_t i = 0; i < levels.size(); ++i) {
        sizes.channel_mult.push_back(levels[i].mult);
        sizes.transformer_depth.push_back(std::max(levels[i].depth, 1));
        if (levels[i].depth > 0) {
            sizes.attention_resolutions.push_back(1 << i);
        }
    }
    // The engine gives the middle block the last level's depth, which a last level without attention leaves free.
    if (levels.back().depth == 0 && middle > 0) {
        sizes.transformer_depth.back() = middle;
    }
}

void architecture_control_net(const String2TensorStorage& file, SDVersion version, UnetSizes sizes) {
    // A control network beside Vega is one of SDXL: it has the table's sizes, not those of Vega's UNet.
    if (version != VERSION_SDXL_VEGA) {
        architecture_unet(file, version, sizes);
    }
}

int64_t architecture_context_width(const std::map<std::string, ggml_tensor*>& params) {
    for (const auto& [name, tensor] : params) {
        if (starts_with(name, "model.diffusion_model.") && ends_with(name, ".attn2.to_k.weight")) {
            return tensor->ne[0];
        }
    }
    return 0;
}

void unet_fit(SDVersion version, const Params& params) {
    const std::string clip = "cond_stage_model.transformer.text_model.";
    const std::string clip_g = "cond_stage_model.1.transformer.text_model.";
    const std::string tokens = "embeddings.token_embedding.weight";
    const std::string positions = "embeddings.position_embedding.weight";
    int64_t text = param_axis(params, clip + tokens, 0);
    if (sd_version_is_sdxl(version)) {
        const int64_t pooled = param_axis(params, clip_g + "text_projection", 1);
        text += param_axis(params, clip_g + tokens, 0);
        const std::string label = "model.diffusion_model.label_emb.0.0.weight";
        require_fit(label, param_axis(params, label, 0), "the pooled text with the picture's sizes",
                    pooled + size_embedding);
        if (param_axis(params, clip_g + positions, 1) != param_axis(params, clip + positions, 1)) {
            fail("tensor '%s%s' has %lld rows, but that of the first text encoder has %lld", clip_g.c_str(),
                 positions.c_str(), static_cast<long long>(param_axis(params, clip_g + positions, 1)),
                 static_cast<long long>(param_axis(params, clip + positions, 1)));
        }
    }
    if (param_axis(params, clip + positions, 1) < 3) {
        fail("tensor '%s%s' leaves no room for a token between start and end", clip.c_str(), positions.c_str());
    }
    for (const auto& [name, tensor] : params) {
        if (starts_with(name, "model.diffusion_model.") && ends_with(name, ".attn2.to_k.weight")) {
            require_fit(name, tensor->ne[0], "the text encoder's output", text);
            break;
        }
    }
}

}  // namespace sdcpp
