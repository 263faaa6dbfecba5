// The numbers of a tensor: read from its file as they are stored, unpacked, put in order and scaled.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"
#include "sdcpp/files/inflate.h"
#include "sdcpp/files/listing.h"

struct TensorStorage;

namespace sdcpp::files {

// Factors of a weight that is stored in few bits: one for each block of rows and columns. One factor for the whole
// weight, or one a row, are blocks as well.
struct Scales {
    std::vector<float> factors;  // empty: none
    uint64_t rows = 1;           // of the weight
    uint64_t columns = 1;
    uint64_t block_rows = 1;
    uint64_t block_columns = 1;

    float at(uint64_t row, uint64_t column) const {
        return factors[row / block_rows * ((columns + block_columns - 1) / block_columns) + column / block_columns];
    }
};

// Returns a weight's scales from what a file holds of them. Throws FileError when their shape does not fit.
Scales scales_of(const Tensor& weight, const Tensor& scale, std::vector<float> factors);

// How the engine is to read a tensor that does not lie in its file as it takes it.
struct Reading {
    Tensor tensor;
    Scales scales;
};

// Reads a tensor's bytes, packed and in order.
void read_bytes(const Tensor& tensor, void* to, const ReadAt& read);

// Reads a tensor's numbers. Throws FileError for a type that has none.
std::vector<float> read_floats(const Tensor& tensor, const ReadAt& read);

// Reads a tensor as the engine's loader takes it: count bytes, of the type that the storage says. Throws Cancelled.
void read_tensor(const TensorStorage& storage, void* to, size_t count, const ReadAt& read);

// Converts a tensor as the engine's loader does, some rows after others. Throws Cancelled.
void convert_rows(void* from, ggml_type from_type, void* to, ggml_type to_type, int64_t rows, int64_t columns);

}  // namespace sdcpp::files
