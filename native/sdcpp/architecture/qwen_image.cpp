#include "sdcpp/architecture/qwen_image.h"

#include "sdcpp/architecture/checkpoint.h"

namespace sdcpp {

using namespace checkpoint;

void architecture_qwen_image(const String2TensorStorage& file, const std::string& prefix, QwenImageSizes sizes) {
    const std::string image = prefix + ".img_in.weight";
    const std::string norm = prefix + ".transformer_blocks.0.attn.norm_q.weight";
    sizes.num_layers = static_cast<int>(layers(file, prefix + ".transformer_blocks.", 0));
    sizes.attention_head_dim = axis(file, norm, 0, sizes.attention_head_dim);
    scale_axes(norm, sizes.attention_head_dim, sizes.axes_dim, sizes.axes_dim_sum);
    const int64_t width = axis(file, image, 1, sizes.num_attention_heads * sizes.attention_head_dim);
    require_multiple(file, image, width, sizes.attention_head_dim, "the width of an attention head");
    sizes.num_attention_heads = width / sizes.attention_head_dim;
    sizes.joint_attention_dim = axis(file, prefix + ".txt_in.weight", 0, sizes.joint_attention_dim);
}

}  // namespace sdcpp
