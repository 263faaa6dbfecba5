// Sizes of the networks, read from the names and shapes of a checkpoint's tensors; called by the module constructors.
//
// Every function leaves the sizes of the engine's own table alone where the checkpoint does not hold the tensor that
// tells them, and throws std::runtime_error, with one sentence that names a tensor, where a module with the
// checkpoint's sizes cannot be built.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "model.h"

namespace sdcpp {

// The sizes of a UNet, by reference to the constructor's own.
struct UnetSizes {
    int& model_channels;
    int& time_embed_dim;
    int& adm_in_channels;
    int& context_dim;
    int& num_res_blocks;
    std::vector<int>& channel_mult;
    std::vector<int>& attention_resolutions;
    std::vector<int>& transformer_depth;
};

// The sizes of a CLIP text encoder, by reference to the constructor's own.
struct ClipSizes {
    int32_t& vocab_size;
    int32_t& n_token;
    int32_t& hidden_size;
    int32_t& intermediate_size;
    int32_t& n_head;
    int32_t& n_layer;
    int32_t& projection_dim;
};

// The sizes of one half of an autoencoder.
struct VaeSizes {
    int ch;
    std::vector<int> ch_mult;
    int num_res_blocks;
};

// The sizes of a T5 encoder, by reference to the runner's own.
struct T5Sizes {
    int64_t& num_layers;
    int64_t& model_dim;
    int64_t& inner_dim;
    int64_t& ff_dim;
    int64_t& num_heads;
    int64_t& vocab_size;
};

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

// The sizes of SD 3's transformer, by reference to the constructor's own.
struct MmditSizes {
    int64_t& depth;
    int64_t& hidden_size;
    int64_t& num_heads;
    int64_t& context_size;
    int64_t& adm_in_channels;
    int64_t& pos_embed_max_size;
    int64_t& num_patchs;
};

// The sizes of a Flux transformer, by reference to the runner's own.
struct FluxSizes {
    int& depth;
    int& depth_single_blocks;
    int64_t& hidden_size;
    int64_t& context_in_dim;
    int64_t& vec_in_dim;
    int64_t& head_dim;
    std::vector<int>& axes_dim;
    int& axes_dim_sum;
    int patch_size;
    int64_t radiance_patch_size;  // Chroma Radiance's, of the checkpoint; -1: not Chroma Radiance
    bool chroma;
};

// The sizes of Z-Image's transformer, by reference to the runner's own.
struct ZImageSizes {
    int64_t& hidden_size;
    int64_t& num_layers;
    int64_t& num_refiner_layers;
    int64_t& head_dim;
    int64_t& num_heads;
    int64_t& num_kv_heads;
    int64_t& multiple_of;
    float& ffn_dim_multiplier;
    int64_t& cap_feat_dim;
    std::vector<int>& axes_dim;
    int64_t& axes_dim_sum;
};

// The sizes of Qwen-Image's transformer, by reference to the runner's own.
struct QwenImageSizes {
    int& num_layers;
    int64_t& attention_head_dim;
    int64_t& num_attention_heads;
    int64_t& joint_attention_dim;
    std::vector<int>& axes_dim;
    int& axes_dim_sum;
};

// The widths that a transformer takes of text, for the encoders that a checkpoint does not hold.
struct TextSizes {
    int64_t context = 4096;
    int64_t clip_l = 768;
    int64_t clip_g = 1280;
};

// Returns the published token width (768: SD 1, 1024: SD 2) that stands for the family of a UNet checkpoint.
int64_t architecture_token_width(const String2TensorStorage& file, int64_t width, bool is_unet);

// Reads a UNet's sizes; heads are the family's rule (8 in SD 1, 64 channels each in SD 2 and SDXL).
void architecture_unet(const String2TensorStorage& file, SDVersion version, UnetSizes sizes);

// Reads a CLIP text encoder's sizes; a head is 64 wide in all of them.
void architecture_clip(const String2TensorStorage& file, const std::string& prefix, ClipSizes sizes);

// Returns the sizes of an autoencoder's encoder or decoder ("encoder" or "decoder").
VaeSizes architecture_vae(const String2TensorStorage& file, const std::string& prefix, const std::string& half,
                          VaeSizes sizes);

// Reads the width of the video autoencoder's encoder (dim) and decoder (dec_dim); its multipliers are fixed.
void architecture_wan_vae(const String2TensorStorage& file, const std::string& prefix, const std::vector<int>& dim_mult,
                          int64_t& dim, int64_t& dec_dim);

// Reads a T5 encoder's sizes; its heads are the columns of the relative attention bias.
void architecture_t5(const String2TensorStorage& file, const std::string& prefix, T5Sizes sizes);

// Reads a language model's sizes; a head is as wide as its norm, or 128 where heads are not normalised.
void architecture_llm(const String2TensorStorage& file, const std::string& prefix, LlmSizes sizes);

// Returns the layers whose outputs are the text, scaled down where the model has fewer layers than the published one.
std::set<int> architecture_llm_outputs(const std::set<int>& published, int64_t num_layers);

// Reads the sizes of SD 3's transformer; a head is as wide as its norm, or 64 where heads are not normalised.
void architecture_mmdit(const String2TensorStorage& file, MmditSizes sizes);

// Reads the sizes of a Flux transformer; a head is as wide as its norm, and the rope's axes share that width.
void architecture_flux(const String2TensorStorage& file, const std::string& prefix, FluxSizes sizes);

// Reads the sizes of Z-Image's transformer; a head is as wide as its norm, and the rope's axes share that width.
void architecture_z_image(const String2TensorStorage& file, const std::string& prefix, ZImageSizes sizes);

// Reads the sizes of Qwen-Image's transformer; a head is as wide as its norm, and the rope's axes share that width.
void architecture_qwen_image(const String2TensorStorage& file, const std::string& prefix, QwenImageSizes sizes);

// Returns the widths of text that the checkpoint's SD 3 or Flux transformer takes.
TextSizes architecture_text(const String2TensorStorage& file);

// Returns the width of the text that the cross attention of a UNet takes.
int64_t architecture_context_width(const std::map<std::string, ggml_tensor*>& params);

// Throws unless the checkpoint holds every parameter of the modules in its shape and the modules fit each other.
void architecture_check(SDVersion version, const std::map<std::string, ggml_tensor*>& params,
                        const String2TensorStorage& file);

}  // namespace sdcpp
