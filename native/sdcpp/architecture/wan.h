// Wan's video networks: the transformers, and the autoencoder, which Qwen-Image has too.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model.h"
#include "sdcpp/api/sdcpp.h"

namespace sdcpp {

// Reads the width of the video autoencoder's encoder (dim) and decoder (dec_dim); its multipliers are fixed.
void architecture_wan_vae(const String2TensorStorage& file, const std::string& prefix, const std::vector<int>& dim_mult,
                          int64_t& dim, int64_t& dec_dim);

// The sizes of Wan's transformer, by reference to the runner's own; the runner has counted its layers.
struct WanSizes {
    const std::string& model_type;  // "t2v", or "i2v" where it reads what CLIP sees
    const int& num_layers;
    const int& vace_layers;
    const int64_t& flf_pos_embed_token_number;  // 0 where it does not tell a first frame from a last one
    int64_t& in_dim;
    int64_t& dim;
    int64_t& ffn_dim;
    int& freq_dim;
    int64_t& text_dim;
    int64_t& out_dim;
    int64_t& num_heads;
    int64_t& vace_in_dim;
    int64_t& image_dim;
};

// Reads the sizes of Wan's transformer, and the name by which the engine knows what it does; a head is 128 wide in all
// of them. Returns false where the checkpoint holds none.
bool architecture_wan(const String2TensorStorage& file, const std::string& prefix, SDVersion version, std::string& name,
                      WanSizes sizes);

template <typename Params>
bool architecture_wan(const String2TensorStorage& file, const std::string& prefix, SDVersion version, std::string& name,
                      Params& params) {
    return architecture_wan(
        file, prefix, version, name,
        WanSizes{params.model_type, params.num_layers, params.vace_layers, params.flf_pos_embed_token_number,
                 params.in_dim, params.dim, params.ffn_dim, params.freq_dim, params.text_dim, params.out_dim,
                 params.num_heads, params.vace_in_dim, params.image_dim});
}

// Returns the product of the two widths of the first layer that the engine tells Wan's versions by: that of the
// published model that takes as many channels; 0 for those that are told otherwise.
int64_t architecture_wan_channels(const String2TensorStorage& file, int64_t product);

// Tells whether a checkpoint holds the second diffusion model of a pair.
bool architecture_has_high_noise(const String2TensorStorage& file);

// Throws unless the encoders' outputs fit the transformers, and these each other.
void wan_fit(const std::map<std::string, ggml_tensor*>& params);

// Returns a model's abilities with those that a network of a name has for videos; pair: there are two of it.
sdcpp_abilities_t wan_abilities(sdcpp_abilities_t able, SDVersion version, const std::string& network, bool pair);

}  // namespace sdcpp
