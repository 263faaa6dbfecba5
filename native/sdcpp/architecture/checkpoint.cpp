#include "sdcpp/architecture/checkpoint.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <stdexcept>

namespace sdcpp::checkpoint {

constexpr int64_t norm_groups = 32;  // of every group normalisation in the UNet and the autoencoder

void fail(const char* format, ...) {
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    throw std::runtime_error(text);
}

std::string shape_text(const int64_t* ne, int dims) {
    std::string text = "[";
    for (int i = dims - 1; i >= 0; --i) {
        text += std::to_string(ne[i]) + (i > 0 ? ", " : "");
    }
    return text + "]";
}

std::string shape_text(const TensorStorage& tensor) {
    return shape_text(tensor.ne, std::max(tensor.n_dims, 1));
}

const TensorStorage* find(const String2TensorStorage& file, const std::string& name) {
    const auto found = file.find(name);
    return found == file.end() ? nullptr : &found->second;
}

bool has(const String2TensorStorage& file, const std::string& name) {
    return find(file, name) != nullptr;
}

int64_t axis(const String2TensorStorage& file, const std::string& name, int index, int64_t otherwise) {
    const TensorStorage* tensor = find(file, name);
    if (tensor == nullptr) {
        return otherwise;
    }
    const int64_t size = tensor->ne[index];
    if (size < 1 || size > max_width) {
        fail("tensor '%s' has shape %s: the size %lld is out of range", name.c_str(), shape_text(*tensor).c_str(),
             static_cast<long long>(size));
    }
    return size;
}

int64_t layers(const String2TensorStorage& file, const std::string& prefix, int64_t otherwise) {
    int64_t found = 0;
    for (const auto& [name, tensor] : file) {
        if (!starts_with(name, prefix)) {
            continue;
        }
        const size_t end = name.find_first_not_of("0123456789", prefix.size());
        if (end == prefix.size() || end == std::string::npos || name[end] != '.') {
            continue;
        }
        const std::string index = name.substr(prefix.size(), end - prefix.size());
        if (index.size() > 3 || std::stoi(index) >= max_layers) {
            fail("tensor '%s' is of layer %s: at most %d layers are supported", name.c_str(), index.c_str(),
                 max_layers);
        }
        found = std::max<int64_t>(found, std::stoi(index) + 1);
    }
    return found > 0 ? found : otherwise;
}

int count(const String2TensorStorage& file, const std::string& prefix, const std::string& suffix, int limit) {
    int found = 0;
    while (has(file, prefix + std::to_string(found) + suffix)) {
        if (++found > limit) {
            fail("tensor '%s%d%s' is one too many: at most %d are supported", prefix.c_str(), found - 1, suffix.c_str(),
                 limit);
        }
    }
    return found;
}

void require_multiple(const String2TensorStorage& file, const std::string& name, int64_t size, int64_t of,
                      const char* what) {
    if (size % of != 0) {
        const TensorStorage* tensor = find(file, name);
        fail("tensor '%s' has shape %s: %lld is not a multiple of %lld, %s", name.c_str(),
             tensor != nullptr ? shape_text(*tensor).c_str() : "[]", static_cast<long long>(size),
             static_cast<long long>(of), what);
    }
}

int64_t group_width(const String2TensorStorage& file, const std::string& name, int index, int64_t otherwise) {
    const int64_t width = axis(file, name, index, otherwise);
    require_multiple(file, name, width, norm_groups, "the groups of the normalisation");
    return width;
}

int64_t token_rows(const String2TensorStorage& file, const std::string& name, int64_t tokens) {
    const int64_t rows = axis(file, name, 1, tokens);
    if (rows < tokens) {
        fail("tensor '%s' has shape %s: the tokenizer needs %lld rows", name.c_str(),
             shape_text(*find(file, name)).c_str(), static_cast<long long>(tokens));
    }
    return rows;
}

int64_t param_axis(const Params& params, const std::string& name, int index) {
    const auto found = params.find(name);
    return found == params.end() ? 0 : found->second->ne[index];
}

void require_fit(const std::string& name, int64_t takes, const char* what, int64_t gives) {
    if (takes != 0 && gives != 0 && takes != gives) {
        fail("tensor '%s' takes vectors of %lld values, but %s has %lld", name.c_str(), static_cast<long long>(takes),
             what, static_cast<long long>(gives));
    }
}

void require_encoder(const Params& params) {
    if (params.lower_bound("text_encoders.") == params.lower_bound("text_encoders/")) {
        fail(
            "tensor 'text_encoders.t5xxl.transformer.shared.weight' is missing from the checkpoint, and so is every "
            "other text encoder");
    }
}

}  // namespace sdcpp::checkpoint
