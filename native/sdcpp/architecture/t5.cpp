#include "sdcpp/architecture/t5.h"

#include "sdcpp/architecture/checkpoint.h"

namespace sdcpp {

using namespace checkpoint;

void architecture_t5(const String2TensorStorage& file, const std::string& prefix, T5Sizes sizes) {
    const std::string tokens = prefix + ".shared.weight";
    const std::string blocks = prefix + ".encoder.block.";
    const std::string attention = blocks + "0.layer.0.SelfAttention.";
    sizes.model_dim = axis(file, tokens, 0, sizes.model_dim);
    sizes.vocab_size = token_rows(file, tokens, sizes.vocab_size);
    sizes.inner_dim = axis(file, attention + "q.weight", 1, sizes.model_dim);
    sizes.num_heads = axis(file, attention + "relative_attention_bias.weight", 0, sizes.num_heads);
    sizes.ff_dim = axis(file, blocks + "0.layer.1.DenseReluDense.wi_0.weight", 1, sizes.ff_dim);
    sizes.num_layers = layers(file, blocks, sizes.num_layers);
    require_multiple(file, attention + "q.weight", sizes.inner_dim, sizes.num_heads, "the attention heads");
}

}  // namespace sdcpp
