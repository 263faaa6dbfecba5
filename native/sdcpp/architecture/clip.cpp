#include "sdcpp/architecture/clip.h"

#include <utility>

#include "sdcpp/architecture/checkpoint.h"
#include "sdcpp/placement/placement.h"

namespace sdcpp {

using namespace checkpoint;

constexpr int64_t clip_tokens = 49408;
constexpr int64_t clip_vision_head_width = 80;
constexpr int64_t clip_positions = 77;  // where the engine splits a prompt at fixed places

namespace {

thread_local const ClipScope* scope = nullptr;

}  // namespace

ClipScope::ClipScope(const String2TensorStorage& file, const std::string& prefix, bool gelu)
    : file(file), prefix(prefix), gelu(gelu), outer(std::exchange(scope, this)) {}

ClipScope::~ClipScope() {
    scope = outer;
}

void architecture_clip(ClipSizes sizes) {
    if (scope == nullptr) {
        return;
    }
    const String2TensorStorage& file = scope->file;
    const std::string& prefix = scope->prefix;
    const std::string tokens = prefix + ".embeddings.token_embedding.weight";
    if (!has(file, tokens)) {
        return;
    }
    const std::string blocks = prefix + ".encoder.layers.";
    const int64_t hidden = axis(file, tokens, 0, 0);
    require_multiple(file, tokens, hidden, head_width, "the width of an attention head");
    const int64_t vocabulary = token_rows(file, tokens, clip_tokens);
    sizes.hidden_size = static_cast<int32_t>(hidden);
    sizes.n_head = static_cast<int32_t>(hidden / head_width);
    sizes.vocab_size = static_cast<int32_t>(vocabulary);
    sizes.n_token =
        static_cast<int32_t>(axis(file, prefix + ".embeddings.position_embedding.weight", 1, sizes.n_token));
    sizes.intermediate_size = static_cast<int32_t>(axis(file, blocks + "0.mlp.fc1.weight", 1, sizes.intermediate_size));
    sizes.projection_dim = static_cast<int32_t>(axis(file, prefix + ".text_projection", 1, sizes.projection_dim));
    const int64_t found = layers(file, blocks, sizes.n_layer);
    // Published SD 2 checkpoints may lack the last of 24 layers, which the engine counts but does not run.
    const bool last_stripped = found == 23 && sizes.n_layer == 24;
    if (!last_stripped) {
        sizes.n_layer = static_cast<int32_t>(found);
    }
    clip_layers_note(sizes.n_layer);
}

void architecture_clip_vision(ClipVisionSizes sizes) {
    const std::string vision = scope != nullptr ? scope->prefix + ".vision_model." : "";
    const std::string positions = vision + "embeddings.position_embedding.weight";
    if (scope == nullptr || !has(scope->file, positions)) {
        return;
    }
    const String2TensorStorage& file = scope->file;
    const std::string blocks = vision + "encoder.layers.";
    const int64_t hidden = axis(file, positions, 0, 0);
    require_multiple(file, positions, hidden, clip_vision_head_width, "the width of an attention head");
    sizes.hidden_size = static_cast<int32_t>(hidden);
    sizes.n_head = static_cast<int32_t>(hidden / clip_vision_head_width);
    sizes.intermediate_size = static_cast<int32_t>(axis(file, blocks + "0.mlp.fc1.weight", 1, sizes.intermediate_size));
    sizes.n_layer = static_cast<int32_t>(layers(file, blocks, sizes.n_layer));
}

void architecture_clip_vision_projection(int32_t& hidden_size, int32_t& projection_dim) {
    if (scope != nullptr) {
        const std::string projection = scope->prefix + ".visual_projection.weight";
        hidden_size = static_cast<int32_t>(axis(scope->file, projection, 0, hidden_size));
        projection_dim = static_cast<int32_t>(axis(scope->file, projection, 1, projection_dim));
    }
}

bool clip_gelu(bool otherwise) {
    return scope != nullptr ? scope->gelu : otherwise;
}

void clip_fit(const Params& params, const std::string& encoder) {
    const std::string name = encoder + "transformer.text_model.embeddings.position_embedding.weight";
    const int64_t rows = param_axis(params, name, 1);
    if (rows != 0 && rows != clip_positions) {
        fail("tensor '%s' has %lld rows, but the model needs %lld", name.c_str(), static_cast<long long>(rows),
             static_cast<long long>(clip_positions));
    }
}

}  // namespace sdcpp
