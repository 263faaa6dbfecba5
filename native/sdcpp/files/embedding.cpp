// Textual inversions.
#include "sdcpp/files/embedding.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "sdcpp/files/values.h"

namespace sdcpp::files {

namespace {

const Tensor* find(const Listing& listing, const char* name) {
    for (const auto& tensor : listing.tensors) {
        if (tensor.name == name) {
            return &tensor;
        }
    }
    return nullptr;
}

// Returns the length of a vector of an embedding, or 0 for a tensor that can be none.
int64_t width_of(const Tensor& tensor) {
    return tensor.shape.empty() || tensor.shape.size() > 2 ? 0 : tensor.shape.back();
}

// Returns the one tensor of an embedding for one text encoder: of AUTOMATIC1111's two formats ("*" in a .pt file,
// "emb_params"), of diffusers (the word itself), or without a name.
const Tensor& only(const Listing& listing) {
    for (const char* name : {"*", "emb_params"}) {
        if (const Tensor* tensor = find(listing, name)) {
            return *tensor;
        }
    }
    if (listing.tensors.size() != 1) {
        throw FileError("is no embedding: it holds " + std::to_string(listing.tensors.size()) + " tensors" +
                        (listing.tensors.empty() ? std::string() : ", such as " + shown(listing.tensors[0].name)));
    }
    return listing.tensors[0];
}

std::vector<float> vectors(Input& input, const Tensor& tensor, int64_t width, const char* encoder) {
    if (width_of(tensor) != width) {
        throw FileError("is no embedding for this model: its vectors have " + std::to_string(width_of(tensor)) +
                        " numbers, the " + encoder + " takes " + std::to_string(width));
    }
    auto values =
        read_floats(tensor, [&input](uint64_t position, void* to, size_t count) { input.read(position, to, count); });
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
        throw FileError("holds vectors with numbers that are not finite");
    }
    return values;
}

Embedding embedding_of(const std::string& path, int64_t width, int64_t second_width) {
    const Listing listing = list(path);
    Input input(path);
    const Tensor* first = find(listing, "clip_l");
    const Tensor* second = find(listing, "clip_g");
    const bool pair = first != nullptr && second != nullptr;
    Embedding embedding;
    if (second_width == 0) {
        if (pair) {
            throw FileError("is an embedding for SDXL: it holds vectors for two text encoders, and this model has one");
        }
        embedding.first = vectors(input, only(listing), width, "text encoder");
    } else {
        if (!pair) {
            throw FileError("is no embedding for SDXL: it holds no vectors named clip_l and clip_g");
        }
        embedding.first = vectors(input, *first, width, "first text encoder");
        embedding.second = vectors(input, *second, second_width, "second text encoder");
    }
    embedding.count = embedding.first.size() / static_cast<size_t>(width);
    if (pair && embedding.second.size() != embedding.count * static_cast<size_t>(second_width)) {
        throw FileError("is a damaged embedding: its two text encoders get different numbers of vectors");
    }
    return embedding;
}

}  // namespace

Embedding read_embedding(const std::string& path, int64_t width, int64_t second_width) {
    try {
        return embedding_of(path, width, second_width);
    } catch (const FileError& error) {
        throw FileError(path + " " + error.what());
    }
}

}  // namespace sdcpp::files
