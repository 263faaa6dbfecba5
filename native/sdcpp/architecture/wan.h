// The autoencoder of Wan's videos, which Qwen-Image has too.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"

namespace sdcpp {

// Reads the width of the video autoencoder's encoder (dim) and decoder (dec_dim); its multipliers are fixed.
void architecture_wan_vae(const String2TensorStorage& file, const std::string& prefix, const std::vector<int>& dim_mult,
                          int64_t& dim, int64_t& dec_dim);

}  // namespace sdcpp
