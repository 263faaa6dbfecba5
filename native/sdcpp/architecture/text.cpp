#include "sdcpp/architecture/text.h"

#include <algorithm>

#include "sdcpp/architecture/checkpoint.h"

namespace sdcpp {

using namespace checkpoint;

TextSizes architecture_text(const String2TensorStorage& file) {
    const std::string transformer = "model.diffusion_model.";
    TextSizes sizes;
    sizes.context = axis(file, transformer + "txt_in.weight", 0,
                         axis(file, transformer + "context_embedder.weight", 0, sizes.context));
    sizes.clip_l = axis(file, transformer + "vector_in.in_layer.weight", 0, sizes.clip_l);
    const std::string label = transformer + "y_embedder.mlp.0.weight";
    if (has(file, label)) {
        const std::string tokens = "transformer.text_model.embeddings.token_embedding.weight";
        const int64_t both = axis(file, label, 0, 0);
        const int64_t share = both * sizes.clip_l / (sizes.clip_l + sizes.clip_g);
        const int64_t second = axis(file, "text_encoders.clip_g." + tokens, 0, both - share);
        sizes.clip_l = axis(file, "text_encoders.clip_l." + tokens, 0, std::max<int64_t>(both - second, 0));
        sizes.clip_g = std::max<int64_t>(both - sizes.clip_l, 0);
    }
    return sizes;
}

}  // namespace sdcpp
