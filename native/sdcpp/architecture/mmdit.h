// SD 3's transformer.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "model.h"

namespace sdcpp {

// The sizes of SD 3's transformer, by reference to the constructor's own.
struct MmditSizes {
    int64_t& depth;
    int64_t& hidden_size;
    int64_t& context_embedder_out_dim;
    int64_t& num_heads;
    int64_t& context_size;
    int64_t& adm_in_channels;
    int64_t& pos_embed_max_size;
    int64_t& num_patchs;
};

// Reads the sizes of SD 3's transformer; a head is as wide as its norm, or 64 where heads are not normalised.
void architecture_mmdit(const String2TensorStorage& file, MmditSizes sizes);

// Throws unless the transformer fits its text encoders.
void mmdit_fit(const std::map<std::string, ggml_tensor*>& params);

}  // namespace sdcpp
