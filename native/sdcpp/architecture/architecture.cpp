// Reading the networks' sizes from a checkpoint, and comparing the networks with it before anything is allocated.
#include "sdcpp/architecture/architecture.h"

#include <algorithm>
#include <cmath>
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
constexpr int64_t clip_positions = 77;  // where the engine splits a prompt at fixed places
constexpr int64_t qwen_tokens = 151669;
constexpr int64_t mistral_tokens = 131072;
constexpr int64_t vision_head_width = 80;  // of Qwen2.5-VL's vision tower
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

// The number of layers: one more than the highest index i in the names that begin with prefix + i + ".".
int64_t layers(const File& file, const std::string& prefix, int64_t otherwise) {
    int64_t found = 0;
    for (const auto& [name, tensor] : file) {
        if (!starts_with(name, prefix)) {
            continue;
        }
        const size_t end = name.find_first_not_of("0123456789", prefix.size());
        if (end == prefix.size() || end == std::string::npos || name[end] != '.') {
            continue;
        }
        const std::string index = name.substr(prefix.size(), end - prefix.size());
        if (index.size() > 3 || std::stoi(index) >= max_layers) {
            fail("tensor '%s' is of layer %s: at most %d layers are supported", name.c_str(), index.c_str(),
                 max_layers);
        }
        found = std::max<int64_t>(found, std::stoi(index) + 1);
    }
    return found > 0 ? found : otherwise;
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

// The rows of a token embedding, which must reach to the tokenizer's last token.
int64_t token_rows(const File& file, const std::string& name, int64_t tokens) {
    const int64_t rows = axis(file, name, 1, tokens);
    if (rows < tokens) {
        fail("tensor '%s' has shape %s: the tokenizer needs %lld rows", name.c_str(),
             shape_text(*find(file, name)).c_str(), static_cast<long long>(tokens));
    }
    return rows;
}

// Shares a head's width among the rope's axes as the published model does.
template <typename Sum>
void scale_axes(const std::string& name, int64_t head_dim, std::vector<int>& axes, Sum& sum) {
    for (int& axis : axes) {
        const int64_t scaled = axis * head_dim;
        if (scaled % (2 * sum) != 0) {
            fail("tensor '%s': a head of %lld values cannot be shared among the axes of the positions", name.c_str(),
                 static_cast<long long>(head_dim));
        }
        axis = static_cast<int>(scaled / sum);
    }
    sum = static_cast<Sum>(head_dim);
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

void architecture_clip(const String2TensorStorage& file, const std::string& prefix, ClipSizes sizes) {
    const std::string tokens = prefix + ".embeddings.token_embedding.weight";
    if (!has(file, tokens)) {
        return;
    }
    const std::string blocks = prefix + ".encoder.layers.";
    const int64_t hidden = axis(file, tokens, 0, 0);
    require_multiple(file, tokens, hidden, head_width, "the width of an attention head");
    const int64_t vocabulary = token_rows(file, tokens, clip_tokens);
    sizes.hidden_size = static_cast<int32_t>(hidden);
    sizes.n_head = static_cast<int32_t>(hidden / head_width);
    sizes.vocab_size = static_cast<int32_t>(vocabulary);
    sizes.n_token =
        static_cast<int32_t>(axis(file, prefix + ".embeddings.position_embedding.weight", 1, sizes.n_token));
    sizes.intermediate_size =
        static_cast<int32_t>(axis(file, blocks + "0.mlp.fc1.weight", 1, sizes.intermediate_size));
    sizes.projection_dim = static_cast<int32_t>(axis(file, prefix + ".text_projection", 1, sizes.projection_dim));
    const int64_t found = layers(file, blocks, sizes.n_layer);
    // Published SD 2 checkpoints may lack the last of 24 layers, which the engine counts but does not run.
    const bool last_stripped = found == 23 && sizes.n_layer == 24;
    if (!last_stripped) {
        sizes.n_layer = static_cast<int32_t>(found);
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

void architecture_wan_vae(const String2TensorStorage& file, const std::string& prefix, const std::vector<int>& dim_mult,
                          int64_t& dim, int64_t& dec_dim) {
    // The kernels' two channel axes are merged in the table; the biases have one each.
    dim = axis(file, prefix + ".encoder.conv1.bias", 0, dim);
    const std::string last = prefix + ".decoder.conv1.bias";
    const int64_t width = axis(file, last, 0, dec_dim * dim_mult.back());
    require_multiple(file, last, width, dim_mult.back(), "the multiplier of the last level");
    dec_dim = width / dim_mult.back();
}

void architecture_t5(const String2TensorStorage& file, const std::string& prefix, T5Sizes sizes) {
    const std::string tokens = prefix + ".shared.weight";
    const std::string blocks = prefix + ".encoder.block.";
    const std::string attention = blocks + "0.layer.0.SelfAttention.";
    sizes.model_dim = axis(file, tokens, 0, sizes.model_dim);
    sizes.vocab_size = token_rows(file, tokens, sizes.vocab_size);
    sizes.inner_dim = axis(file, attention + "q.weight", 1, sizes.model_dim);
    sizes.num_heads = axis(file, attention + "relative_attention_bias.weight", 0, sizes.num_heads);
    sizes.ff_dim = axis(file, blocks + "0.layer.1.DenseReluDense.wi_0.weight", 1, sizes.ff_dim);
    sizes.num_layers = layers(file, blocks, sizes.num_layers);
    require_multiple(file, attention + "q.weight", sizes.inner_dim, sizes.num_heads, "the attention heads");
}

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
    require_multiple(file, norm, sizes.vision_hidden_size, vision_head_width, "the width of an attention head");
    sizes.vision_heads = static_cast<int>(sizes.vision_hidden_size / vision_head_width);
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

void architecture_mmdit(const String2TensorStorage& file, MmditSizes sizes) {
    const std::string transformer = "model.diffusion_model.";
    const std::string patches = transformer + "x_embedder.proj.weight";
    sizes.depth = layers(file, transformer + "joint_blocks.", sizes.depth);
    sizes.hidden_size = axis(file, patches, 3, head_width * sizes.depth);
    const int64_t head = axis(file, transformer + "joint_blocks.0.x_block.attn.ln_q.weight", 0, head_width);
    require_multiple(file, patches, sizes.hidden_size, head, "the width of an attention head");
    sizes.num_heads = sizes.hidden_size / head;
    sizes.context_size = axis(file, transformer + "context_embedder.weight", 0, sizes.context_size);
    sizes.adm_in_channels = axis(file, transformer + "y_embedder.mlp.0.weight", 0, sizes.adm_in_channels);
    const std::string positions = transformer + "pos_embed";
    sizes.num_patchs = axis(file, positions, 1, sizes.num_patchs);
    sizes.pos_embed_max_size = std::lround(std::sqrt(static_cast<double>(sizes.num_patchs)));
    if (sizes.pos_embed_max_size * sizes.pos_embed_max_size != sizes.num_patchs) {
        fail("tensor '%s' has shape %s: %lld positions are no square", positions.c_str(),
             shape_text(*find(file, positions)).c_str(), static_cast<long long>(sizes.num_patchs));
    }
}

void architecture_flux(const String2TensorStorage& file, const std::string& prefix, FluxSizes sizes) {
    const std::string text = prefix + ".txt_in.weight";
    const std::string norm = prefix + ".double_blocks.0.txt_attn.norm.key_norm.scale";
    const int64_t published_head = sizes.axes_dim_sum;
    sizes.depth = static_cast<int>(layers(file, prefix + ".double_blocks.", 0));
    sizes.depth_single_blocks = static_cast<int>(layers(file, prefix + ".single_blocks.", 0));
    sizes.context_in_dim = axis(file, text, 0, sizes.context_in_dim);
    sizes.hidden_size = axis(file, text, 1, sizes.hidden_size);
    if (sizes.vec_in_dim > 0) {
        sizes.vec_in_dim = axis(file, prefix + ".vector_in.in_layer.weight", 0, sizes.vec_in_dim);
    }
    sizes.head_dim = axis(file, norm, 0, sizes.head_dim > 0 ? sizes.head_dim : published_head);
    require_multiple(file, text, sizes.hidden_size, sizes.head_dim, "the width of an attention head");
    scale_axes(norm, sizes.head_dim, sizes.axes_dim, sizes.axes_dim_sum);
    if (sizes.chroma && (sizes.depth != 19 || sizes.depth_single_blocks != 38)) {
        fail("tensor '%s.double_blocks.%d.img_attn.qkv.weight' is the last of %d double and %d single blocks: Chroma's "
             "table of modulations is for 19 and 38",
             prefix.c_str(), sizes.depth - 1, sizes.depth, sizes.depth_single_blocks);
    }
    const int64_t patch = sizes.radiance_patch_size;
    if (patch > 0 && patch != sizes.patch_size && 2 * patch != sizes.patch_size) {
        fail("tensor '%s.img_in_patch.weight' has patches of %lld pixels: the model needs %d", prefix.c_str(),
             static_cast<long long>(patch), sizes.patch_size);
    }
}

void architecture_z_image(const String2TensorStorage& file, const std::string& prefix, ZImageSizes sizes) {
    constexpr int64_t time_width = 256;  // of the time embedding, which modulates every block
    const std::string patches = prefix + ".x_embedder.weight";
    const std::string attention = prefix + ".layers.0.attention.";
    sizes.hidden_size = axis(file, patches, 1, sizes.hidden_size);
    if (sizes.hidden_size < time_width) {
        fail("tensor '%s' has shape %s: the time embedding needs a width of at least %lld", patches.c_str(),
             shape_text(*find(file, patches)).c_str(), static_cast<long long>(time_width));
    }
    sizes.cap_feat_dim = axis(file, prefix + ".cap_embedder.0.weight", 0, sizes.cap_feat_dim);
    sizes.num_layers = layers(file, prefix + ".layers.", sizes.num_layers);
    sizes.num_refiner_layers = layers(file, prefix + ".noise_refiner.", sizes.num_refiner_layers);
    const std::string norm = attention + "q_norm.weight";
    sizes.head_dim = axis(file, norm, 0, sizes.head_dim);
    scale_axes(norm, sizes.head_dim, sizes.axes_dim, sizes.axes_dim_sum);
    const std::string out = attention + "out.weight";
    const std::string qkv = attention + "qkv.weight";
    const int64_t query_width = axis(file, out, 0, sizes.num_heads * sizes.head_dim);
    const int64_t qkv_width = axis(file, qkv, 1, query_width + 2 * sizes.num_kv_heads * sizes.head_dim);
    require_multiple(file, out, query_width, sizes.head_dim, "the width of an attention head");
    sizes.num_heads = query_width / sizes.head_dim;
    sizes.num_kv_heads = (qkv_width - query_width) / (2 * sizes.head_dim);
    if (sizes.num_kv_heads < 1 || query_width + 2 * sizes.num_kv_heads * sizes.head_dim != qkv_width ||
        sizes.num_heads % sizes.num_kv_heads != 0) {
        fail("tensor '%s' has shape %s: its rows are not queries of %lld values and keys and values of whole heads",
             qkv.c_str(), shape_text(*find(file, qkv)).c_str(), static_cast<long long>(query_width));
    }
    const int64_t published = (static_cast<int64_t>(sizes.ffn_dim_multiplier * sizes.hidden_size) + 255) / 256 * 256;
    const int64_t feed = axis(file, prefix + ".layers.0.feed_forward.w1.weight", 1, published);
    if (feed != published) {
        // The engine takes a multiplier and rounds down: half a value more gives exactly this width.
        sizes.multiple_of = 1;
        sizes.ffn_dim_multiplier = static_cast<float>((feed + 0.5) / sizes.hidden_size);
    }
}

void architecture_qwen_image(const String2TensorStorage& file, const std::string& prefix, QwenImageSizes sizes) {
    const std::string image = prefix + ".img_in.weight";
    const std::string norm = prefix + ".transformer_blocks.0.attn.norm_q.weight";
    sizes.num_layers = static_cast<int>(layers(file, prefix + ".transformer_blocks.", 0));
    sizes.attention_head_dim = axis(file, norm, 0, sizes.attention_head_dim);
    scale_axes(norm, sizes.attention_head_dim, sizes.axes_dim, sizes.axes_dim_sum);
    const int64_t width = axis(file, image, 1, sizes.num_attention_heads * sizes.attention_head_dim);
    require_multiple(file, image, width, sizes.attention_head_dim, "the width of an attention head");
    sizes.num_attention_heads = width / sizes.attention_head_dim;
    sizes.joint_attention_dim = axis(file, prefix + ".txt_in.weight", 0, sizes.joint_attention_dim);
}

TextSizes architecture_text(const String2TensorStorage& file) {
    const std::string transformer = "model.diffusion_model.";
    TextSizes sizes;
    sizes.context = axis(file, transformer + "txt_in.weight", 0,
                         axis(file, transformer + "context_embedder.weight", 0, sizes.context));
    sizes.clip_l = axis(file, transformer + "vector_in.in_layer.weight", 0, sizes.clip_l);
    const std::string label = transformer + "y_embedder.mlp.0.weight";
    if (has(file, label)) {
        const std::string tokens = "transformer.text_model.embeddings.token_embedding.weight";
        const int64_t both = axis(file, label, 0, 0);
        const int64_t share = both * sizes.clip_l / (sizes.clip_l + sizes.clip_g);
        const int64_t second = axis(file, "text_encoders.clip_g." + tokens, 0, both - share);
        sizes.clip_l = axis(file, "text_encoders.clip_l." + tokens, 0, std::max<int64_t>(both - second, 0));
        sizes.clip_g = std::max<int64_t>(both - sizes.clip_l, 0);
    }
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

// Throws where a model that cannot do without text has no encoder for it.
void require_encoder(const Params& params) {
    if (params.lower_bound("text_encoders.") == params.lower_bound("text_encoders/")) {
        fail("tensor 'text_encoders.t5xxl.transformer.shared.weight' is missing from the checkpoint, and so is every "
             "other text encoder");
    }
}

void check_clip_positions(const Params& params, const std::string& encoder) {
    const std::string name = encoder + "transformer.text_model.embeddings.position_embedding.weight";
    const int64_t rows = param_axis(params, name, 1);
    if (rows != 0 && rows != clip_positions) {
        fail("tensor '%s' has %lld rows, but the model needs %lld", name.c_str(), static_cast<long long>(rows),
             static_cast<long long>(clip_positions));
    }
}

void check_sd3(const Params& params) {
    const std::string tokens = "transformer.text_model.embeddings.token_embedding.weight";
    const std::string context = "model.diffusion_model.context_embedder.weight";
    const std::string label = "model.diffusion_model.y_embedder.mlp.0.weight";
    const int64_t first = param_axis(params, "text_encoders.clip_l." + tokens, 0);
    const int64_t second = param_axis(params, "text_encoders.clip_g." + tokens, 0);
    const int64_t pooled = param_axis(params, "text_encoders.clip_g.transformer.text_model.text_projection", 1);
    const int64_t width = param_axis(params, context, 0);
    require_encoder(params);
    check_clip_positions(params, "text_encoders.clip_l.");
    check_clip_positions(params, "text_encoders.clip_g.");
    require_fit(context, width, "T5's output", param_axis(params, "text_encoders.t5xxl.transformer.shared.weight", 0));
    if (first != 0 && second != 0) {
        require_fit(label, param_axis(params, label, 0), "the pooled text", first + pooled);
    }
    if (first + second > width || first + pooled > param_axis(params, label, 0)) {
        fail("tensor '%s' takes vectors of %lld values, but the CLIP encoders have %lld together", context.c_str(),
             static_cast<long long>(width), static_cast<long long>(first + second));
    }
}

void check_flux(const Params& params) {
    const std::string text = "model.diffusion_model.txt_in.weight";
    const std::string vector = "model.diffusion_model.vector_in.in_layer.weight";
    if (params.count("model.diffusion_model.distilled_guidance_layer.in_proj.weight") == 0) {
        require_encoder(params);  // Chroma runs without: the engine gives it empty text
    }
    check_clip_positions(params, "text_encoders.clip_l.");
    require_fit(text, param_axis(params, text, 0), "T5's output",
                param_axis(params, "text_encoders.t5xxl.transformer.shared.weight", 0));
    require_fit(vector, param_axis(params, vector, 0), "the pooled text",
                param_axis(params, "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight", 0));
}

// The language models' families: outputs is how many layers' outputs lie side by side in the text.
void check_llm(const Params& params, const std::string& text, int64_t outputs) {
    const std::string tokens = "text_encoders.llm.model.embed_tokens.weight";
    require_fit(text, param_axis(params, text, 0), "the language model's output",
                outputs * param_axis(params, tokens, 0));
    if (outputs > 1 && params.count("text_encoders.llm.model.layers.3.input_layernorm.weight") == 0) {
        fail("tensor 'text_encoders.llm.model.layers.3.input_layernorm.weight' is missing from the checkpoint");
    }
    const std::string vision = "text_encoders.llm.visual.merger.mlp.2.weight";
    require_fit(tokens, param_axis(params, tokens, 0), "the vision tower's output", param_axis(params, vision, 1));
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
    } else if (sd_version_is_sd3(version)) {
        check_sd3(params);
    } else if (sd_version_is_flux2(version)) {
        check_llm(params, "model.diffusion_model.txt_in.weight", 3);
    } else if (version == VERSION_OVIS_IMAGE || sd_version_is_qwen_image(version)) {
        check_llm(params, "model.diffusion_model.txt_in.weight", 1);
    } else if (sd_version_is_flux(version)) {
        check_flux(params);
    } else if (sd_version_is_z_image(version)) {
        check_llm(params, "model.diffusion_model.cap_embedder.1.weight", 1);
    }
}

}  // namespace sdcpp
