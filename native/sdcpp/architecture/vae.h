// The autoencoder of pictures.
#pragma once

#include <string>
#include <vector>

#include "model.h"

namespace sdcpp {

// The sizes of one half of an autoencoder, by reference to the constructor's own.
struct VaeSizes {
    int& ch;
    std::vector<int>& ch_mult;
    int& num_res_blocks;
};

// Reads the sizes of an autoencoder's encoder or decoder ("encoder" or "decoder").
void architecture_vae(const String2TensorStorage& file, const std::string& prefix, const std::string& half,
                      VaeSizes sizes);

}  // namespace sdcpp
