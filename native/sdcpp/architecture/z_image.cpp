#include "sdcpp/architecture/z_image.h"

#include "sdcpp/architecture/checkpoint.h"

namespace sdcpp {

using namespace checkpoint;

void architecture_z_image(const String2TensorStorage& file, const std::string& prefix, ZImageSizes sizes) {
    constexpr int64_t time_width = 256;  // of the time embedding, which modulates every block
    const std::string patches = prefix + ".x_embedder.weight";
    const std::string attention = prefix + ".layers.0.attention.";
    sizes.hidden_size = axis(file, patches, 1, sizes.hidden_size);
    if (sizes.hidden_size < time_width) {
        fail("tensor '%s' has shape %s: the time embedding needs a width of at least %lld", patches.c_str(),
             shape_text(*find(file, patches)).c_str(), static_cast<long long>(time_width));
    }
    sizes.cap_feat_dim = axis(file, prefix + ".cap_embedder.0.weight", 0, sizes.cap_feat_dim);
    sizes.num_layers = layers(file, prefix + ".layers.", sizes.num_layers);
    sizes.num_refiner_layers = layers(file, prefix + ".noise_refiner.", sizes.num_refiner_layers);
    const std::string norm = attention + "q_norm.weight";
    sizes.head_dim = axis(file, norm, 0, sizes.head_dim);
    scale_axes(norm, sizes.head_dim, sizes.axes_dim, sizes.axes_dim_sum);
    const std::string out = attention + "out.weight";
    const std::string qkv = attention + "qkv.weight";
    const int64_t query_width = axis(file, out, 0, sizes.num_heads * sizes.head_dim);
    const int64_t qkv_width = axis(file, qkv, 1, query_width + 2 * sizes.num_kv_heads * sizes.head_dim);
    require_multiple(file, out, query_width, sizes.head_dim, "the width of an attention head");
    sizes.num_heads = query_width / sizes.head_dim;
    sizes.num_kv_heads = (qkv_width - query_width) / (2 * sizes.head_dim);
    if (sizes.num_kv_heads < 1 || query_width + 2 * sizes.num_kv_heads * sizes.head_dim != qkv_width ||
        sizes.num_heads % sizes.num_kv_heads != 0) {
        fail("tensor '%s' has shape %s: its rows are not queries of %lld values and keys and values of whole heads",
             qkv.c_str(), shape_text(*find(file, qkv)).c_str(), static_cast<long long>(query_width));
    }
    const int64_t published = (static_cast<int64_t>(sizes.ffn_dim_multiplier * sizes.hidden_size) + 255) / 256 * 256;
    const int64_t feed = axis(file, prefix + ".layers.0.feed_forward.w1.weight", 1, published);
    if (feed != published) {
        // The engine takes a multiplier and rounds down: half a value more gives exactly this width.
        sizes.multiple_of = 1;
        sizes.ffn_dim_multiplier = static_cast<float>((feed + 0.5) / sizes.hidden_size);
    }
}

}  // namespace sdcpp
