// UNets: the diffusion networks of SD 1, SD 2 and SDXL, and their control networks.
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

// Reads a UNet's sizes; heads are the family's rule (8 in SD 1, 64 channels each in SD 2 and SDXL).
void architecture_unet(const String2TensorStorage& file, SDVersion version, UnetSizes sizes);

// Reads a control network's sizes, which are those of the UNet that the checkpoint holds.
void architecture_control_net(const String2TensorStorage& file, SDVersion version, UnetSizes sizes);

// Returns the published token width (768: SD 1, 1024: SD 2) that stands for the family of a UNet checkpoint.
int64_t architecture_token_width(const String2TensorStorage& file, int64_t width, bool is_unet);

// Returns the width of the text that the cross attention of a UNet takes.
int64_t architecture_context_width(const std::map<std::string, ggml_tensor*>& params);

// Throws unless the UNet fits its text encoders.
void unet_fit(SDVersion version, const std::map<std::string, ggml_tensor*>& params);

}  // namespace sdcpp
