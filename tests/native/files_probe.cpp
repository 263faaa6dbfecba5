// What the readers of model files give the engine's loader. Part of the engine library in test builds only.
#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "model_io/tensor_storage.h"
#include "sdcpp/files/input.h"
#include "sdcpp/files/model.h"
#include "stable-diffusion.h"

namespace {

std::vector<std::string> paths;
std::vector<TensorStorage> tensors;
std::vector<std::vector<char>> values;
std::string error;

}  // namespace

extern "C" {

// Reads a model and all its tensors as the loader does. Returns how many they are, or -1 for an error.
SD_API int sdcpp_probe_read_model(const char* path) {
    paths.clear();
    tensors.clear();
    values.clear();
    try {
        sdcpp::files::read_model(path, "", paths, tensors);
        for (const TensorStorage& tensor : tensors) {
            sdcpp::files::Input input(paths.at(tensor.file_index));
            auto& bytes = values.emplace_back(static_cast<size_t>(tensor.nbytes_to_read()));
            sdcpp::files::read_tensor(tensor, bytes.data(), bytes.size(),
                                      [&](uint64_t position, void* to, size_t count) {
                                          input.read(position, to, count);
                                      });
        }
    } catch (const std::exception& exception) {
        error = exception.what();
        return -1;
    }
    return static_cast<int>(tensors.size());
}

SD_API const char* sdcpp_probe_read_error() {
    return error.c_str();
}

// Tells a tensor's name, ggml's type, sizes (five, the shortest stride first), and its bytes.
SD_API const char* sdcpp_probe_read_tensor(int index, int* type, int64_t* sizes, const void** bytes, uint64_t* count) {
    const TensorStorage& tensor = tensors.at(static_cast<size_t>(index));
    *type = tensor.type;
    std::copy_n(tensor.ne, SD_MAX_DIMS, sizes);
    *bytes = values[static_cast<size_t>(index)].data();
    *count = values[static_cast<size_t>(index)].size();
    return tensor.name.c_str();
}

}  // extern "C"
