#include "sdcpp/architecture/flux.h"

#include "sdcpp/architecture/checkpoint.h"
#include "sdcpp/architecture/clip.h"

namespace sdcpp {

using namespace checkpoint;

void architecture_flux(const String2TensorStorage& file, const std::string& prefix, FluxSizes sizes) {
    const std::string text = prefix + ".txt_in.weight";
    const std::string norm = prefix + ".double_blocks.0.txt_attn.norm.key_norm.scale";
    const int64_t published_head = sizes.axes_dim_sum;
    sizes.depth = static_cast<int>(layers(file, prefix + ".double_blocks.", 0));
    sizes.depth_single_blocks = static_cast<int>(layers(file, prefix + ".single_blocks.", 0));
    sizes.context_in_dim = axis(file, text, 0, sizes.context_in_dim);
    sizes.hidden_size = axis(file, text, 1, sizes.hidden_size);
    if (sizes.vec_in_dim > 0) {
        sizes.vec_in_dim = axis(file, prefix + ".vector_in.in_layer.weight", 0, sizes.vec_in_dim);
    }
    sizes.head_dim = axis(file, norm, 0, sizes.head_dim > 0 ? sizes.head_dim : published_head);
    require_multiple(file, text, sizes.hidden_size, sizes.head_dim, "the width of an attention head");
    scale_axes(norm, sizes.head_dim, sizes.axes_dim, sizes.axes_dim_sum);
    if (sizes.chroma && (sizes.depth != 19 || sizes.depth_single_blocks != 38)) {
        fail(
            "tensor '%s.double_blocks.%d.img_attn.qkv.weight' is the last of %d double and %d single blocks: Chroma's "
            "table of modulations is for 19 and 38",
            prefix.c_str(), sizes.depth - 1, sizes.depth, sizes.depth_single_blocks);
    }
    const int64_t patch = sizes.radiance_patch_size;
    if (patch > 0 && patch != sizes.patch_size && 2 * patch != sizes.patch_size) {
        fail("tensor '%s.img_in_patch.weight' has patches of %lld pixels: the model needs %d", prefix.c_str(),
             static_cast<long long>(patch), sizes.patch_size);
    }
}

void flux_fit(const Params& params) {
    const std::string text = "model.diffusion_model.txt_in.weight";
    const std::string vector = "model.diffusion_model.vector_in.in_layer.weight";
    if (params.count("model.diffusion_model.distilled_guidance_layer.in_proj.weight") == 0) {
        require_encoder(params);  // Chroma runs without: the engine gives it empty text
    }
    clip_fit(params, "text_encoders.clip_l.");
    require_fit(text, param_axis(params, text, 0), "T5's output",
                param_axis(params, "text_encoders.t5xxl.transformer.shared.weight", 0));
    require_fit(vector, param_axis(params, vector, 0), "the pooled text",
                param_axis(params, "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight", 0));
}

}  // namespace sdcpp
