// Reading the networks' sizes from a checkpoint, and comparing the networks with it before anything is allocated.
#include "architecture.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <numeric>
#include <stdexcept>

#include "util.h"

bool is_unused_tensor(const std::string& name);

namespace {

constexpr int64_t norm_groups = 32;  // of every group normalisation in the UNet and the autoencoder
constexpr int64_t head_width = 64;   // of CLIP, and of the UNets that fix a head's channels instead of the heads
constexpr int64_t unet_heads = 8;    // of the UNets that fix the heads
constexpr int64_t clip_tokens = 49408;
constexpr int64_t size_embedding = 6 * 256;  // SDXL's picture sizes in the vector condition

// Bounds on what a file can ask for, far above every published model, so that the engine's tables cannot overflow.
constexpr int64_t max_width = 1 << 20;
constexpr int max_layers = 256;
constexpr int max_res_blocks = 4;
constexpr int max_depth = 16;

using File = String2TensorStorage;
using Params = std::map<std::string, ggml_tensor*>;

[[noreturn]] void fail(const char* format, ...) {
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    throw std::runtime_error(text);
}

// A shape as the checkpoint's file has it: the slowest axis first.
std::string shape_text(const int64_t* ne, int dims) {
    std::string text = "[";
    for (int i = dims - 1; i >= 0; --i) {
        text += std::to_string(ne[i]) + (i > 0 ? ", " : "");
    }
    return text + "]";
}

std::string shape_text(const TensorStorage& tensor) {
    return shape_text(tensor.ne, std::max(tensor.n_dims, 1));
}

const TensorStorage* find(const File& file, const std::string& name) {
    const auto found = file.find(name);
    return found == file.end() ? nullptr : &found->second;
}

bool has(const File& file, const std::string& name) {
    return find(file, name) != nullptr;
}

// The size of a tensor along an axis (0: the fastest), or a default when the checkpoint has no such tensor.
int64_t axis(const File& file, const std::string& name, int index, int64_t otherwise) {
    const TensorStorage* tensor = find(file, name);
    if (tensor == nullptr) {
        return otherwise;
    }
    const int64_t size = tensor->ne[index];
    if (size < 1 || size > max_width) {
        fail("tensor '%s' has shape %s: the size %lld is out of range", name.c_str(), shape_text(*tensor).c_str(),
             static_cast<long long>(size));
    }
    return size;
}

// The number of names prefix + i + suffix, i = 0, 1, ..., that the checkpoint holds without a gap.
int count(const File& file, const std::string& prefix, const std::string& suffix, int limit) {
    int found = 0;
    while (has(file, prefix + std::to_string(found) + suffix)) {
        if (++found > limit) {
            fail("tensor '%s%d%s' is one too many: at most %d are supported", prefix.c_str(), found - 1,
                 suffix.c_str(), limit);
        }
    }
    return found;
}

void require_multiple(const File& file, const std::string& name, int64_t size, int64_t of, const char* what) {
    if (size % of != 0) {
        const TensorStorage* tensor = find(file, name);
        fail("tensor '%s' has shape %s: %lld is not a multiple of %lld, %s", name.c_str(),
             tensor != nullptr ? shape_text(*tensor).c_str() : "[]", static_cast<long long>(size),
             static_cast<long long>(of), what);
    }
}

// The width of a normalised layer, which its groups must divide.
int64_t group_width(const File& file, const std::string& name, int index, int64_t otherwise) {
    const int64_t width = axis(file, name, index, otherwise);
    require_multiple(file, name, width, norm_groups, "the groups of the normalisation");
    return width;
}

}  // namespace

namespace sdcpp {

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
    const bool heads_fixed = sd_version_is_sd1(version);
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
        const std::string blocks = block + "1.transformer_blocks.";
        level.depth = count(file, blocks, ".attn1.to_q.weight", max_depth);
        if (level.depth > 0) {
            require_multiple(file, conv, width, heads_fixed ? unet_heads : head_width,
                             heads_fixed ? "the attention heads" : "the width of an attention head");
        }
    }
    if (levels.back().blocks == 0) {
        fail("tensor '%sinput_blocks.%d.0.in_layers.2.weight' is missing from the checkpoint", unet.c_str(), index);
    }

    const int middle = count(file, unet + "middle_block.1.transformer_blocks.", ".attn1.to_q.weight", max_depth);
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

void architecture_clip(const String2TensorStorage& file, const std::string& prefix, ClipSizes sizes) {
    const std::string tokens = prefix + ".embeddings.token_embedding.weight";
    if (!has(file, tokens)) {
        return;
    }
    const std::string layers = prefix + ".encoder.layers.";
    const int64_t hidden = axis(file, tokens, 0, 0);
    require_multiple(file, tokens, hidden, head_width, "the width of an attention head");
    const int64_t vocabulary = axis(file, tokens, 1, 0);
    if (vocabulary < clip_tokens) {
        fail("tensor '%s' has shape %s: the tokenizer needs %lld rows", tokens.c_str(),
             shape_text(*find(file, tokens)).c_str(), static_cast<long long>(clip_tokens));
    }
    sizes.hidden_size = static_cast<int32_t>(hidden);
    sizes.n_head = static_cast<int32_t>(hidden / head_width);
    sizes.vocab_size = static_cast<int32_t>(vocabulary);
    sizes.n_token =
        static_cast<int32_t>(axis(file, prefix + ".embeddings.position_embedding.weight", 1, sizes.n_token));
    sizes.intermediate_size =
        static_cast<int32_t>(axis(file, layers + "0.mlp.fc1.weight", 1, sizes.intermediate_size));
    sizes.projection_dim = static_cast<int32_t>(axis(file, prefix + ".text_projection", 1, sizes.projection_dim));
    const int found = count(file, layers, ".layer_norm1.weight", max_layers);
    // Published SD 2 checkpoints may lack the last of 24 layers, which the engine counts but does not run.
    const bool last_stripped = found == 23 && sizes.n_layer == 24;
    if (found > 0 && !last_stripped) {
        sizes.n_layer = found;
    }
}

VaeSizes architecture_vae(const String2TensorStorage& file, const std::string& prefix, const std::string& half,
                          VaeSizes sizes) {
    const bool decoder = half == "decoder";
    const std::string levels = prefix + "." + half + (decoder ? ".up." : ".down.");
    const int found = count(file, levels, ".block.0.conv1.weight", max_layers);
    if (found == 0) {
        return sizes;
    }
    // A picture is 8 times its latent all over the engine: three of four levels halve it.
    if (found != static_cast<int>(sizes.ch_mult.size())) {
        fail("tensor '%s%d.block.0.conv1.weight' is the autoencoder's last level: it must have %zu levels, not %d",
             levels.c_str(), found - 1, sizes.ch_mult.size(), found);
    }
    std::vector<int64_t> widths;
    for (int i = 0; i < found; ++i) {
        widths.push_back(group_width(file, levels + std::to_string(i) + ".block.0.conv1.weight", 3, 0));
    }
    int64_t channels = 0;
    if (decoder) {
        for (const int64_t width : widths) {
            channels = std::gcd(channels, width);
        }
    } else {
        channels = group_width(file, prefix + ".encoder.conv_in.weight", 3, sizes.ch);
    }
    sizes.ch = static_cast<int>(channels);
    for (int i = 0; i < found; ++i) {
        require_multiple(file, levels + std::to_string(i) + ".block.0.conv1.weight", widths[i], channels,
                         "the channels of the first layer");
        sizes.ch_mult[i] = static_cast<int>(widths[i] / channels);
    }
    sizes.num_res_blocks = count(file, levels + "0.block.", ".conv1.weight", max_res_blocks + 1) - (decoder ? 1 : 0);
    return sizes;
}

int64_t architecture_context_width(const std::map<std::string, ggml_tensor*>& params) {
    for (const auto& [name, tensor] : params) {
        if (starts_with(name, "model.diffusion_model.") && ends_with(name, ".attn2.to_k.weight")) {
            return tensor->ne[0];
        }
    }
    return 0;
}

}  // namespace sdcpp

namespace {

int64_t param_axis(const Params& params, const std::string& name, int index) {
    const auto found = params.find(name);
    return found == params.end() ? 0 : found->second->ne[index];
}

// Throws unless two modules agree on a width; a width of 0 is one of a module that is not there.
void require_fit(const std::string& name, int64_t takes, const char* what, int64_t gives) {
    if (takes != 0 && gives != 0 && takes != gives) {
        fail("tensor '%s' takes vectors of %lld values, but %s has %lld", name.c_str(), static_cast<long long>(takes),
             what, static_cast<long long>(gives));
    }
}

void check_unet(SDVersion version, const Params& params) {
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

}  // namespace

namespace sdcpp {

void architecture_check(SDVersion version, const std::map<std::string, ggml_tensor*>& params,
                        const String2TensorStorage& file) {
    std::string first;
    bool first_is_shape = false;
    size_t misfits = 0;
    for (const auto& [name, param] : params) {
        const TensorStorage* tensor = is_unused_tensor(name) ? nullptr : find(file, name);
        if (tensor == nullptr) {
            // The engine's loader lets these two go, and so must this check.
            if (contains(name, "alphas_cumprod") ||
                contains(name, "cond_stage_model.transformer.text_model.encoder.layers.23")) {
                continue;
            }
            if (misfits++ == 0) {
                first = "tensor '" + name + "' of shape " + shape_text(param->ne, ggml_n_dims(param)) +
                        " is missing from the checkpoint";
            }
            continue;
        }
        if (std::equal(param->ne, param->ne + GGML_MAX_DIMS, tensor->ne) &&
            tensor->nelements() == ggml_nelements(param)) {
            continue;
        }
        ++misfits;
        if (!first_is_shape) {
            first_is_shape = true;
            first = "tensor '" + name + "' has shape " + shape_text(*tensor) + ", but the model needs " +
                    shape_text(param->ne, std::max(ggml_n_dims(param), tensor->n_dims));
        }
    }
    if (misfits > 1) {
        fail("%s (and %zu more tensors do not fit)", first.c_str(), misfits - 1);
    }
    if (misfits == 1) {
        fail("%s", first.c_str());
    }
    if (sd_version_is_unet(version)) {
        check_unet(version, params);
    }
}

}  // namespace sdcpp
