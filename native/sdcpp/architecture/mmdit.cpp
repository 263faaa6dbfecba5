#include "sdcpp/architecture/mmdit.h"

#include <cmath>

#include "sdcpp/architecture/checkpoint.h"
#include "sdcpp/architecture/clip.h"

namespace sdcpp {

using namespace checkpoint;

void architecture_mmdit(const String2TensorStorage& file, MmditSizes sizes) {
    const std::string transformer = "model.diffusion_model.";
    const std::string patches = transformer + "x_embedder.proj.weight";
    sizes.depth = layers(file, transformer + "joint_blocks.", sizes.depth);
    sizes.hidden_size = axis(file, patches, 3, head_width * sizes.depth);
    sizes.context_embedder_out_dim = sizes.hidden_size;
    const int64_t head = axis(file, transformer + "joint_blocks.0.x_block.attn.ln_q.weight", 0, head_width);
    require_multiple(file, patches, sizes.hidden_size, head, "the width of an attention head");
    sizes.num_heads = sizes.hidden_size / head;
    sizes.context_size = axis(file, transformer + "context_embedder.weight", 0, sizes.context_size);
    sizes.adm_in_channels = axis(file, transformer + "y_embedder.mlp.0.weight", 0, sizes.adm_in_channels);
    const std::string positions = transformer + "pos_embed";
    sizes.num_patchs = axis(file, positions, 1, sizes.num_patchs);
    sizes.pos_embed_max_size = std::lround(std::sqrt(static_cast<double>(sizes.num_patchs)));
    if (sizes.pos_embed_max_size * sizes.pos_embed_max_size != sizes.num_patchs) {
        fail("tensor '%s' has shape %s: %lld positions are no square", positions.c_str(),
             shape_text(*find(file, positions)).c_str(), static_cast<long long>(sizes.num_patchs));
    }
}

void mmdit_fit(const Params& params) {
    const std::string tokens = "transformer.text_model.embeddings.token_embedding.weight";
    const std::string context = "model.diffusion_model.context_embedder.weight";
    const std::string label = "model.diffusion_model.y_embedder.mlp.0.weight";
    const int64_t first = param_axis(params, "text_encoders.clip_l." + tokens, 0);
    const int64_t second = param_axis(params, "text_encoders.clip_g." + tokens, 0);
    const int64_t pooled = param_axis(params, "text_encoders.clip_g.transformer.text_model.text_projection", 1);
    const int64_t width = param_axis(params, context, 0);
    require_encoder(params);
    clip_fit(params, "text_encoders.clip_l.");
    clip_fit(params, "text_encoders.clip_g.");
    require_fit(context, width, "T5's output", param_axis(params, "text_encoders.t5xxl.transformer.shared.weight", 0));
    if (first != 0 && second != 0) {
        require_fit(label, param_axis(params, label, 0), "the pooled text", first + pooled);
    }
    if (first + second > width || first + pooled > param_axis(params, label, 0)) {
        fail("tensor '%s' takes vectors of %lld values, but the CLIP encoders have %lld together", context.c_str(),
             static_cast<long long>(width), static_cast<long long>(first + second));
    }
}

}  // namespace sdcpp
