// Copies of weights, each counted on the record of the module whose weights move.
#pragma once

#include <cstddef>
#include <list>
#include <vector>

#include "ggml-backend.h"

namespace sdcpp {

// Tells whether a graph on a backend needs its own copy of a weight.
bool weights_elsewhere(const ggml_tensor* tensor, ggml_backend_t backend);
// Copies a weight.
void weights_copy(ggml_tensor* src, ggml_tensor* dst);
// Sets a tensor; counted when the tensor or the data is a weight.
void weights_set(ggml_tensor* tensor, const void* data, size_t offset, size_t size);
// Reads a tensor; counted when it is a weight.
void weights_get(const ggml_tensor* tensor, void* data, size_t offset, size_t size);
// Reads the one number of a weight of type F32, F16, BF16 or I32.
float weights_scalar(const ggml_tensor* tensor);

// Host copies of weights that live in another device's memory, for as long as a graph needs them.
class HostCopies {
public:
    // Returns the bytes of a weight: its own when the host can read them, else a copy's.
    const void* data_of(const ggml_tensor* tensor);
    void clear() { copies.clear(); }

private:
    std::list<std::vector<char>> copies;
};

}  // namespace sdcpp
