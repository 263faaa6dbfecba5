// What a model file says that it holds, checked: what all formats have in common.
#include "sdcpp/files/listing.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>
#include <utility>

namespace sdcpp::files {

namespace {

constexpr Dtype dtypes[] = {
    {"F64", 8, GGML_TYPE_F32},
    {"F32", 4, GGML_TYPE_F32},
    {"F16", 2, GGML_TYPE_F16},
    {"BF16", 2, GGML_TYPE_BF16},
    {"I64", 8, GGML_TYPE_I32},
    {"I32", 4, GGML_TYPE_I32},
    {"F8_E4M3", 1, GGML_TYPE_F16},
    {"F8_E5M2", 1, GGML_TYPE_F16},
    // Without a use alone; int8 weights have scales beside them.
    {"I8", 1, GGML_TYPE_COUNT},
    {"U8", 1, GGML_TYPE_COUNT},
    {"BOOL", 1, GGML_TYPE_COUNT},
    {"I16", 2, GGML_TYPE_COUNT},
    {"U16", 2, GGML_TYPE_COUNT},
    {"U32", 4, GGML_TYPE_COUNT},
    {"U64", 8, GGML_TYPE_COUNT},
    {"C64", 8, GGML_TYPE_COUNT},
    {"C128", 16, GGML_TYPE_COUNT},
    {"F8_E8M0", 1, GGML_TYPE_COUNT},
};

}  // namespace

const Dtype* dtype_of(const std::string& name) {
    for (const Dtype& dtype : dtypes) {
        if (name == dtype.name) {
            return &dtype;
        }
    }
    return nullptr;
}

uint64_t element_count(const Tensor& tensor) {
    uint64_t count = 1;
    for (const int64_t size : tensor.shape) {
        if (size < 0) {
            throw FileError("tensor " + shown(tensor.name) + " has a dimension of " + std::to_string(size));
        }
        count = product(count, static_cast<uint64_t>(size), "holds a tensor of more numbers than a file can hold");
    }
    return count;
}

void leave_out(Listing& listing, const std::string& name, const std::string& why) {
    constexpr size_t longest = 32;
    listing.left_out.push_back(shown(name) + " (" + why.substr(0, longest) + ")");
    listing.left_out_names.push_back(name);
}

// Tells whether a tensor is called as a LoRA's alpha is.
static bool is_called_alpha(const Tensor& tensor) {
    constexpr std::string_view ending = ".alpha";
    return tensor.name.size() > ending.size() &&
           tensor.name.compare(tensor.name.size() - ending.size(), ending.size(), ending) == 0;
}

bool is_alpha(const Tensor& tensor) {
    constexpr std::string_view integers[] = {"I8", "U8", "BOOL", "I16", "U16", "U32", "U64"};
    return is_called_alpha(tensor) && tensor.dtype != nullptr &&
           std::find(std::begin(integers), std::end(integers), tensor.dtype->name) != std::end(integers);
}

void add(Listing& listing, Tensor tensor) {
    constexpr size_t most_dimensions = 5;
    const bool of_use = tensor.dtype == nullptr || tensor.dtype->type != GGML_TYPE_COUNT;
    // Int8 weights that have scales are asked for by their scales' names later.
    const bool perhaps = tensor.dtype != nullptr && (std::string_view(tensor.dtype->name) == "I8" || is_alpha(tensor));
    if ((of_use || perhaps) && tensor.shape.size() <= most_dimensions && element_count(tensor) > 0) {
        listing.tensors.push_back(std::move(tensor));
        return;
    }
    if (is_called_alpha(tensor) && element_count(tensor) == 0) {
        throw FileError("is damaged: " + shown(tensor.name) + " holds no number");  // left out, it would count as 1
    }
    const bool fits = tensor.shape.size() <= most_dimensions;
    leave_out(listing, tensor.name, !of_use ? tensor.dtype->name : fits ? "empty" : "6 dimensions or more");
}

void check_names(const Listing& listing) {
    std::unordered_set<std::string_view> seen;
    for (const auto& tensor : listing.tensors) {
        if (!seen.insert(tensor.name).second) {
            throw FileError("holds two tensors of the name " + shown(tensor.name));
        }
    }
}

void check_places(const Listing& listing) {
    std::vector<const Tensor*> order;
    order.reserve(listing.tensors.size());
    for (const auto& tensor : listing.tensors) {
        order.push_back(&tensor);
    }
    std::sort(order.begin(), order.end(), [](const Tensor* a, const Tensor* b) { return a->offset < b->offset; });
    for (size_t i = 1; i < order.size(); ++i) {
        if (order[i]->offset < order[i - 1]->offset + order[i - 1]->bytes) {
            throw FileError("tensors " + shown(order[i - 1]->name) + " and " + shown(order[i]->name) +
                            " lie in the same bytes");
        }
    }
}

Listing list(const std::string& path) {
    Input input(path);
    if (is_gguf(input)) {
        return list_gguf(input);
    }
    if (is_zip(input)) {
        return list_torch_zip(input);
    }
    if (is_pickle(input)) {
        return list_torch_legacy(input);
    }
    // Last, since the length that it begins with could be anything.
    if (is_safetensors(input)) {
        return list_safetensors(input);
    }
    throw FileError("is no model file; the engine reads safetensors, GGUF and PyTorch checkpoints");
}

}  // namespace sdcpp::files
