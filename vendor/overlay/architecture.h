// Sizes of the networks, read from the names and shapes of a checkpoint's tensors; called by the module constructors.
//
// Every function leaves the sizes of the engine's own table alone where the checkpoint does not hold the tensor that
// tells them, and throws std::runtime_error, with one sentence that names a tensor, where a module with the
// checkpoint's sizes cannot be built.
#pragma once

#include <cstdint>
#include <map>
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

// Returns the published token width (768: SD 1, 1024: SD 2) that stands for the family of a UNet checkpoint.
int64_t architecture_token_width(const String2TensorStorage& file, int64_t width, bool is_unet);

// Reads a UNet's sizes; heads are the family's rule (8 in SD 1, 64 channels each in SD 2 and SDXL).
void architecture_unet(const String2TensorStorage& file, SDVersion version, UnetSizes sizes);

// Reads a CLIP text encoder's sizes; a head is 64 wide in all of them.
void architecture_clip(const String2TensorStorage& file, const std::string& prefix, ClipSizes sizes);

// Returns the sizes of an autoencoder's encoder or decoder ("encoder" or "decoder").
VaeSizes architecture_vae(const String2TensorStorage& file, const std::string& prefix, const std::string& half,
                          VaeSizes sizes);

// Returns the width of the text that the cross attention of a UNet takes.
int64_t architecture_context_width(const std::map<std::string, ggml_tensor*>& params);

// Throws unless the checkpoint holds every parameter of the modules in its shape and the modules fit each other.
void architecture_check(SDVersion version, const std::map<std::string, ggml_tensor*>& params,
                        const String2TensorStorage& file);

}  // namespace sdcpp
