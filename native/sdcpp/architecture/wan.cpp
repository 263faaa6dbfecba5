#include "sdcpp/architecture/wan.h"

#include <algorithm>

#include "sdcpp/architecture/checkpoint.h"

namespace {

constexpr int64_t wan_head_width = 128;
constexpr int64_t patch_pixels = 4;  // of a latent's pixels, one token's
constexpr int small_layers = 30;     // of 1.3B models, and of the 5B one
constexpr int frames_a_latent = 4;   // but for the first one

bool contains_text(const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
}

// Returns the engine's name of a transformer, by which it knows what goes in beside the noise.
std::string name_of(SDVersion version, const sdcpp::WanSizes& sizes) {
    const bool is_small = sizes.num_layers == small_layers;
    if (version == VERSION_WAN2_2_TI2V) {
        return "Wan2.2-TI2V-5B";
    }
    if (sizes.model_type == "i2v") {
        return sizes.flf_pos_embed_token_number > 0 ? "Wan2.1-FLF2V-14B"
               : is_small                           ? "Wan2.1-I2V-1.3B"
                                                    : "Wan2.1-I2V-14B";
    }
    if (version == VERSION_WAN2_2_I2V) {
        return "Wan2.2-I2V-14B";
    }
    if (sizes.vace_layers > 0) {
        return is_small ? "Wan2.1-VACE-1.3B" : "Wan2.x-VACE-14B";
    }
    return is_small ? "Wan2.1-T2V-1.3B" : "Wan2.x-T2V-14B";
}

}  // namespace

namespace sdcpp {

using namespace checkpoint;

void architecture_wan_vae(const String2TensorStorage& file, const std::string& prefix, const std::vector<int>& dim_mult,
                          int64_t& dim, int64_t& dec_dim) {
    // The kernels' two channel axes are merged in the table; the biases have one each.
    dim = axis(file, prefix + ".encoder.conv1.bias", 0, dim);
    const std::string last = prefix + ".decoder.conv1.bias";
    const int64_t width = axis(file, last, 0, dec_dim * dim_mult.back());
    require_multiple(file, last, width, dim_mult.back(), "the multiplier of the last level");
    dec_dim = width / dim_mult.back();
}

bool architecture_wan(const String2TensorStorage& file, const std::string& prefix, SDVersion version, std::string& name,
                      WanSizes sizes) {
    const std::string patches = prefix + ".patch_embedding.weight";
    const std::string vace = prefix + ".vace_patch_embedding.weight";
    if (sizes.num_layers < 1 || !has(file, patches) || !has(file, prefix + ".patch_embedding.bias")) {
        return false;
    }
    sizes.dim = axis(file, prefix + ".patch_embedding.bias", 0, sizes.dim);
    require_multiple(file, prefix + ".patch_embedding.bias", sizes.dim, wan_head_width,
                     "the width of an attention head");
    sizes.num_heads = sizes.dim / wan_head_width;
    for (const auto& [tensor, channels] : {std::pair(patches, &sizes.in_dim), std::pair(vace, &sizes.vace_in_dim)}) {
        const int64_t product = axis(file, tensor, 3, *channels * sizes.dim);
        require_multiple(file, tensor, product, sizes.dim, "the width of a token");
        *channels = product / sizes.dim;
    }
    sizes.ffn_dim = axis(file, prefix + ".blocks.0.ffn.0.weight", 1, sizes.ffn_dim);
    sizes.freq_dim = static_cast<int>(axis(file, prefix + ".time_embedding.0.weight", 0, sizes.freq_dim));
    sizes.text_dim = axis(file, prefix + ".text_embedding.0.weight", 0, sizes.text_dim);
    sizes.image_dim = axis(file, prefix + ".img_emb.proj.1.weight", 0, sizes.image_dim);
    const std::string head = prefix + ".head.head.weight";
    const int64_t outputs = axis(file, head, 1, sizes.out_dim * patch_pixels);
    require_multiple(file, head, outputs, patch_pixels, "the latent's pixels of a token");
    sizes.out_dim = outputs / patch_pixels;
    if (sizes.vace_layers > 0 && sizes.num_layers % sizes.vace_layers != 0) {
        fail("tensor '%s' is of %d control layers, which cannot be shared among %d layers", vace.c_str(),
             sizes.vace_layers, sizes.num_layers);
    }
    name = name_of(version, sizes);
    return true;
}

int64_t architecture_wan_channels(const String2TensorStorage& file, int64_t product) {
    const int64_t dim = axis(file, "model.diffusion_model.patch_embedding.bias", 0, 0);
    if (dim == 0) {
        return product;
    }
    // 2.2's 14B model that goes on from a picture, and its 5B one.
    return product == 36 * dim ? 36 * 5120 : product == 48 * dim ? 48 * 3072 : 0;
}

bool architecture_has_high_noise(const String2TensorStorage& file) {
    const std::string prefix = "model.high_noise_diffusion_model.";
    return std::any_of(file.begin(), file.end(), [&](const auto& entry) { return starts_with(entry.first, prefix); });
}

void wan_fit(const Params& params) {
    require_encoder(params);
    const std::string low = "model.diffusion_model.";
    const std::string high = "model.high_noise_diffusion_model.";
    const int64_t text = param_axis(params, "text_encoders.t5xxl.transformer.shared.weight", 0);
    const int64_t seen = param_axis(params, "cond_stage_model.transformer.visual_projection.weight", 0);
    for (const std::string& model : {low, high}) {
        const std::string takes = model + "text_embedding.0.weight";
        require_fit(takes, param_axis(params, takes, 0), "the text encoder's output", text);
        const std::string sees = model + "img_emb.proj.1.weight";
        require_fit(sees, param_axis(params, sees, 0), "the CLIP vision encoder's output", seen);
    }
    if (param_axis(params, high + "patch_embedding.bias", 0) == 0) {
        return;
    }
    const auto channels = [&](const std::string& model) {
        return param_axis(params, model + "patch_embedding.weight", 3) /
               param_axis(params, model + "patch_embedding.bias", 0);
    };
    require_fit(high + "patch_embedding.weight", channels(high), "what the low-noise diffusion model takes",
                channels(low));
}

sdcpp_abilities_t wan_abilities(sdcpp_abilities_t able, SDVersion version, const std::string& network, bool pair) {
    if (!sd_version_is_wan(version)) {
        return able;
    }
    const bool goes_on = contains_text(network, "-I2V-") || contains_text(network, "-FLF2V-");
    able.draws_videos = true;
    able.frame_step = frames_a_latent;
    able.needs_first_frame = goes_on;
    able.takes_first_frame = goes_on || version == VERSION_WAN2_2_TI2V;
    able.takes_last_frame = goes_on;
    able.takes_control_frames = able.takes_reference = contains_text(network, "-VACE-");
    able.is_pair = pair;
    return able;
}

}  // namespace sdcpp
