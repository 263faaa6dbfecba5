// Flux transformers, Chroma's among them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model.h"

namespace sdcpp {

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

// Reads the sizes of a Flux transformer; a head is as wide as its norm, and the rope's axes share that width.
void architecture_flux(const String2TensorStorage& file, const std::string& prefix, FluxSizes sizes);

template <typename Params>
void architecture_flux(const String2TensorStorage& file, const std::string& prefix, Params& params, int64_t& head_dim,
                       int64_t radiance_patch_size) {
    architecture_flux(file, prefix,
                      FluxSizes{params.depth, params.depth_single_blocks, params.hidden_size, params.context_in_dim,
                                params.vec_in_dim, head_dim, params.axes_dim, params.axes_dim_sum, params.patch_size,
                                radiance_patch_size, params.is_chroma});
}

// Throws unless the transformer fits its text encoders.
void flux_fit(const std::map<std::string, ggml_tensor*>& params);

}  // namespace sdcpp
