// What a model file holds: the C functions.
#include "sdcpp/api/files.h"

#include <algorithm>
#include <iterator>
#include <new>
#include <string>
#include <utility>

#include "sdcpp/files/listing.h"
#include "sdcpp/files/parts.h"

struct sdcpp_file_t {
    std::string error;
    bool good = false;
    sdcpp::files::Listing listing;
};

sdcpp_file_t* sdcpp_file_list(const char* path) {
    auto* file = new (std::nothrow) sdcpp_file_t;
    if (file == nullptr) {
        return nullptr;
    }
    std::string part_path;
    try {
        for (const auto& part : sdcpp::files::parts(path, "")) {
            part_path = part.path == path ? "" : part.path;
            auto found = sdcpp::files::list(part.path);
            sdcpp::files::check_part(part, found);
            file->listing.format = found.format;
            for (auto& tensor : found.tensors) {
                tensor.name.insert(0, part.prefix);
                file->listing.tensors.push_back(std::move(tensor));
            }
            std::move(found.metadata.begin(), found.metadata.end(), std::back_inserter(file->listing.metadata));
            std::move(found.left_out.begin(), found.left_out.end(), std::back_inserter(file->listing.left_out));
        }
        file->good = true;
    } catch (const std::bad_alloc&) {
        file->error = "lists more than fits into memory";
    } catch (const std::exception& error) {
        try {
            file->error = part_path.empty() ? error.what() : "needs " + part_path + ", which " + error.what();
        } catch (...) {
            // Without memory for a message there is no message.
        }
    }
    return file;
}

const char* sdcpp_file_error(const sdcpp_file_t* file) {
    return file->good ? nullptr : file->error.c_str();
}

const char* sdcpp_file_format(const sdcpp_file_t* file) {
    return file->listing.format;
}

int sdcpp_file_tensor_count(const sdcpp_file_t* file) {
    return static_cast<int>(file->listing.tensors.size());
}

bool sdcpp_file_tensor_get(const sdcpp_file_t* file, int index, sdcpp_file_tensor_t* tensor) {
    if (index < 0 || index >= sdcpp_file_tensor_count(file)) {
        return false;
    }
    const auto& found = file->listing.tensors[static_cast<size_t>(index)];
    tensor->name = found.name.c_str();
    tensor->type = found.dtype != nullptr ? found.dtype->name : ggml_type_name(found.block);
    tensor->dimensions = static_cast<int>(std::min(found.shape.size(), std::size(tensor->shape)));
    std::copy_n(found.shape.begin(), tensor->dimensions, tensor->shape);
    tensor->bytes = found.dtype != nullptr ? sdcpp::files::element_count(found) * found.dtype->bytes : found.bytes;
    return true;
}

int sdcpp_file_left_out_count(const sdcpp_file_t* file) {
    return static_cast<int>(file->listing.left_out.size());
}

const char* sdcpp_file_left_out(const sdcpp_file_t* file, int index) {
    const bool there = index >= 0 && index < sdcpp_file_left_out_count(file);
    return there ? file->listing.left_out[static_cast<size_t>(index)].c_str() : nullptr;
}

bool sdcpp_file_value_get(const sdcpp_file_t* file, int index, sdcpp_file_value_t* value) {
    if (index < 0 || static_cast<size_t>(index) >= file->listing.metadata.size()) {
        return false;
    }
    const auto& found = file->listing.metadata[static_cast<size_t>(index)];
    *value = {found.key.c_str(), found.text.c_str(), found.whole};
    return true;
}

void sdcpp_file_free(sdcpp_file_t* file) {
    delete file;
}
