// Copies of weights, each counted on the record of the module whose weights move.
#pragma once

#include <cstddef>

#include "ggml-backend.h"

namespace sdcpp {

// Copies a weight.
void weights_copy(ggml_tensor* src, ggml_tensor* dst);
// Sets a tensor; counted when the tensor or the data is a weight.
void weights_set(ggml_tensor* tensor, const void* data, size_t offset, size_t size);
// Reads a tensor; counted when it is a weight.
void weights_get(const ggml_tensor* tensor, void* data, size_t offset, size_t size);
// Reads the one number of a weight of type F32, F16, BF16 or I32.
float weights_scalar(const ggml_tensor* tensor);

}  // namespace sdcpp
