// T5 text encoders.
#pragma once

#include <cstdint>
#include <string>

#include "model.h"

namespace sdcpp {

// The sizes of a T5 encoder, by reference to the runner's own.
struct T5Sizes {
    int64_t& num_layers;
    int64_t& model_dim;
    int64_t& inner_dim;
    int64_t& ff_dim;
    int64_t& num_heads;
    int64_t& vocab_size;
};

// Reads a T5 encoder's sizes; its heads are the columns of the relative attention bias.
void architecture_t5(const String2TensorStorage& file, const std::string& prefix, T5Sizes sizes);

template <typename Params>
void architecture_t5(const String2TensorStorage& file, const std::string& prefix, Params& params) {
    architecture_t5(file, prefix,
                    T5Sizes{params.num_layers, params.model_dim, params.inner_dim, params.ff_dim, params.num_heads,
                            params.vocab_size});
}

}  // namespace sdcpp
