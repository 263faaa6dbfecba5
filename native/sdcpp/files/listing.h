// What a model file says that it holds, checked: names, types, shapes, and places that lie inside the file.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "ggml.h"
#include "sdcpp/files/input.h"

namespace sdcpp::files {

// The engine's tensors have no more.
constexpr size_t engine_dimensions = 4;

inline bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// A type that a file stores numbers in.
struct Dtype {
    const char* name;  // as safetensors calls it
    uint32_t bytes;    // of one number
    ggml_type type;    // what the engine takes it as; GGML_TYPE_COUNT: it has no use for it
};

// Returns the type of this name, or nullptr.
const Dtype* dtype_of(const std::string& name);

// A tensor in a file.
struct Tensor {
    std::string name;
    const Dtype* dtype = nullptr;  // nullptr: a type of ggml's alone, which is block
    ggml_type block = GGML_TYPE_COUNT;
    std::vector<int64_t> shape;    // the last dimension is the one in a row; no dimensions: one number
    std::vector<int64_t> strides;  // of numbers, where they are not packed; else empty
    uint64_t offset = 0;           // bytes; in the file, or in the packed entry
    uint64_t bytes = 0;            // from the first number to the end of the last
    uint64_t packed_offset = 0;    // of the packed entry in the file, where there is one
    uint64_t packed_bytes = 0;     // 0: it is not packed
};

// What a file says of itself.
struct Value {
    std::string key;
    std::string text;
    bool whole = true;  // else the text only says what it is: a list
};

struct Listing {
    const char* format = "";            // "safetensors", "GGUF" or "PyTorch"
    std::deque<Tensor> tensors;         // no vector: its growth would take more than a file of many small tensors
    std::vector<std::string> left_out;  // tensors that the engine has no use for: "'name' (BOOL)"
    std::vector<std::string> left_out_names;
    std::vector<Value> metadata;
};

// Lists a file by what its first bytes say that it is. Throws FileError.
Listing list(const std::string& path);

bool is_safetensors(Input& input);
bool is_gguf(Input& input);
bool is_zip(Input& input);
bool is_pickle(Input& input);
Listing list_safetensors(Input& input);
Listing list_gguf(Input& input);
// PyTorch's files, a zip archive since 1.6.
Listing list_torch_zip(Input& input);
Listing list_torch_legacy(Input& input);

// Returns the number of a tensor's elements. Throws FileError for a negative or absurd dimension.
uint64_t element_count(const Tensor& tensor);

// Tells whether a tensor is a LoRA's alpha in one of the integer types that no weight has.
bool is_alpha(const Tensor& tensor);

// Adds a tensor to a listing, or to what it leaves out.
void add(Listing& listing, Tensor tensor);
void leave_out(Listing& listing, const std::string& name, const std::string& why);

// Throw FileError when two tensors of a file have one name, or share bytes.
void check_names(const Listing& listing);
void check_places(const Listing& listing);

}  // namespace sdcpp::files
