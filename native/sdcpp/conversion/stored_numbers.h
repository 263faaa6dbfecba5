// Numbers as files store them and as the engine takes them.
#pragma once

#include <cstdint>

#include "ggml.h"

struct TensorStorage;

// Of the engine's loader, which declares it in no header: converts rows of one type to another.
void convert_tensor(void* src, ggml_type src_type, void* dst, ggml_type dst_type, int nrows, int n_per_row);

namespace sdcpp {

// Tells whether a tensor is stored in a type that ggml does not have: 8-bit floats, doubles, or integers of 8 bytes.
bool is_stored_otherwise(const TensorStorage& tensor);

// Makes some numbers of such a tensor what the engine takes: of type f16, f32 or i32. Both are `count` numbers.
void take_stored(const TensorStorage& tensor, void* stored, void* taken, int64_t count);

}  // namespace sdcpp
