// A model's weight as f32 values in host memory, and back, wherever it lives and whatever its type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "ggml.h"

namespace sdcpp {

// Returns a weight's bytes as they are stored.
std::vector<char> weight_bytes(const ggml_tensor* weight);

// Replaces a weight's bytes; whoever has a copy of it on a device is told.
void weight_replace(ggml_tensor* weight, const std::vector<char>& bytes);

// Returns bytes of a weight's type as f32, and f32 as bytes of its type, as the loader converts them.
std::vector<float> weight_decode(const ggml_tensor* weight, const std::vector<char>& bytes, int n_threads);
std::vector<char> weight_encode(const ggml_tensor* weight, const std::vector<float>& values, int n_threads);

// Returns the bytes of host memory that can be had without swapping, as far as the system and the process's control
// group tell; more than there can be when they do not.
uint64_t host_memory_free();

// Calls a function with parts of [0, count) on up to n_threads threads; the first exception is thrown here.
void in_parts(int64_t count, int n_threads, const std::function<void(int64_t first, int64_t last)>& function);

}  // namespace sdcpp
