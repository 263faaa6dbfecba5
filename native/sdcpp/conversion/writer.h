// Model files as they are written: a header that says where each tensor will be, and the tensors one after the other.
#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ggml.h"

namespace sdcpp {

// A tensor that will be written.
struct Entry {
    std::string name;
    ggml_type type;
    std::vector<int64_t> shape;  // the last dimension is the one in a row
    int64_t rows;
    int64_t columns;

    uint64_t bytes() const { return ggml_row_size(type, columns) * static_cast<uint64_t>(rows); }
};

using Texts = std::vector<std::pair<std::string, std::string>>;

// A file that is being written. Throws std::runtime_error that begins with "target: " when it cannot be.
class Writer {
public:
    virtual ~Writer() = default;
    // Returns the size of the whole file.
    virtual uint64_t size() const = 0;
    // Writes the header; the tensors follow in its order.
    void begin();
    void write(const void* data, uint64_t bytes);
    void end();

protected:
    Writer(std::string path, uint64_t alignment) : path(std::move(path)), alignment(alignment) {}
    virtual std::string header() const = 0;

private:
    void put(const void* data, uint64_t bytes);

    const std::string path;
    const uint64_t alignment;  // of each tensor
    std::ofstream file;
};

// Tells whether safetensors has a type.
bool safetensors_has(ggml_type type);
// Throws Refused for a tensor that the format cannot hold.
std::unique_ptr<Writer> safetensors_writer(const std::string& path, const std::vector<Entry>& entries,
                                           const Texts& metadata);
// source: a GGUF file whose values are kept with their types; "": none.
std::unique_ptr<Writer> gguf_writer(const std::string& path, const std::vector<Entry>& entries, const Texts& metadata,
                                    const std::string& source);

}  // namespace sdcpp
