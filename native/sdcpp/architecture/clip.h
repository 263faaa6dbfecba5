// CLIP text encoders.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "model.h"

namespace sdcpp {

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

// Says where the CLIP that this thread constructs is in a checkpoint, and whether it computes with GELU instead of its
// quick approximation, until the end of the scope.
class ClipScope {
public:
    ClipScope(const String2TensorStorage& file, const std::string& prefix, bool gelu);
    ~ClipScope();
    ClipScope(const ClipScope&) = delete;
    ClipScope& operator=(const ClipScope&) = delete;

    const String2TensorStorage& file;
    const std::string prefix;
    const bool gelu;

private:
    const ClipScope* const outer;
};

// Reads the sizes of the scope's CLIP, if there is a scope; a head is 64 wide in all of them.
void architecture_clip(ClipSizes sizes);

// Tells whether the scope's CLIP computes with GELU; without a scope, what the engine goes by.
bool clip_gelu(bool otherwise);

// The sizes of CLIP's vision encoder, by reference to the constructor's own.
struct ClipVisionSizes {
    int32_t& hidden_size;
    int32_t& intermediate_size;
    int32_t& n_head;
    int32_t& n_layer;
};

// Reads the sizes of the scope's vision encoder, if there is a scope; a head is 80 wide, as in OpenCLIP's ViT-H.
void architecture_clip_vision(ClipVisionSizes sizes);
// Reads the widths around its projection, likewise.
void architecture_clip_vision_projection(int32_t& hidden_size, int32_t& projection_dim);

// Throws unless an encoder has the positions of the prompt's pieces where the engine splits it at fixed places.
void clip_fit(const std::map<std::string, ggml_tensor*>& params, const std::string& encoder);

}  // namespace sdcpp
