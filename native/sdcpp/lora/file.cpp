#include "sdcpp/lora/file.h"
#include "sdcpp/values/finite.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <stdexcept>
#include <system_error>
#include <tuple>

#ifndef _WIN32
#include <sys/stat.h>
#endif

#include "util.h"

namespace sdcpp {

bool FileIdentity::operator==(const FileIdentity& other) const {
    const auto all = [](const FileIdentity& one) {
        return std::tie(one.path, one.device, one.number, one.size, one.modified, one.changed);
    };
    return all(*this) == all(other);
}

FileIdentity file_identity(const std::string& path) {
    FileIdentity identity;
    identity.path = path;
#ifdef _WIN32
    std::error_code error;
    const auto file = std::filesystem::u8path(path);
    identity.size = std::filesystem::file_size(file, error);
    if (!error) {
        identity.modified = std::filesystem::last_write_time(file, error).time_since_epoch().count();
    }
    if (error) {
        throw std::runtime_error("LoRA: " + path + " cannot be read: " + error.message());
    }
#else
    struct stat found = {};
    if (stat(path.c_str(), &found) != 0) {
        const std::error_code error(errno, std::generic_category());
        throw std::runtime_error("LoRA: " + path + " cannot be read: " + error.message());
    }
#ifdef __APPLE__
    const timespec modified = found.st_mtimespec;
    const timespec changed = found.st_ctimespec;
#else
    const timespec modified = found.st_mtim;
    const timespec changed = found.st_ctim;
#endif
    const auto nanoseconds = [](const timespec& time) {
        return static_cast<int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
    };
    identity.device = static_cast<uint64_t>(found.st_dev);
    identity.number = static_cast<uint64_t>(found.st_ino);
    identity.size = static_cast<uint64_t>(found.st_size);
    identity.modified = nanoseconds(modified);
    identity.changed = nanoseconds(changed);
#endif
    return identity;
}

LoraFile::LoraFile(const std::string& path) : file_path(path), peft(path), loader(std::make_unique<ModelLoader>()) {
    if (!loader->init_from_file(path)) {
        throw std::runtime_error("LoRA: " + path +
                                 " is no file of tensors that can be read (safetensors, GGUF, pickle)");
    }
    tensor_names = loader->get_tensor_names();
    if (tensor_names.empty()) {
        throw std::runtime_error("LoRA: " + path + " holds no tensors");
    }
}

LoraFile::~LoraFile() {
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
}

std::vector<int64_t> LoraFile::shape(const std::string& name) {
    const TensorStorage& stored = loader->get_tensor_storage_map()[name];
    return {std::reverse_iterator(stored.ne + stored.n_dims), std::reverse_iterator(stored.ne)};
}

void LoraFile::load(const std::vector<std::string>& names, int n_threads) {
    auto& stored = loader->get_tensor_storage_map();
    ctx = ggml_init({ggml_tensor_overhead() * (names.size() + 1), nullptr, true});
    for (const std::string& name : names) {
        const TensorStorage& storage = stored[name];
        const int dims = std::min(storage.n_dims, GGML_MAX_DIMS);
        // Integers, of which only alphas consist, have no conversion of their own in ggml.
        const ggml_type type = storage.type == GGML_TYPE_I32 ? GGML_TYPE_I32 : GGML_TYPE_F32;
        factors[name] = {ggml_new_tensor(ctx, type, dims, storage.ne), dims};
        if (storage.type == GGML_TYPE_F16) {
            halves.insert(factors[name].tensor);
        }
    }
    if (names.empty()) {
        return;
    }
    buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_cpu_buffer_type());
    if (buffer == nullptr) {
        throw std::runtime_error("LoRA: no host memory for the tensors of " + file_path);
    }
    const bool loaded = loader->load_tensors(
        [&](const TensorStorage& storage, ggml_tensor** tensor) {
            const auto found = factors.find(storage.name);
            *tensor = found == factors.end() ? nullptr : found->second.tensor;
            return true;
        },
        n_threads);
    if (!loaded) {
        throw std::runtime_error("LoRA: the tensors of " + file_path + " cannot be read");
    }
    for (auto& [name, factor] : factors) {
        ggml_tensor* tensor = factor.tensor;
        if (tensor->type != GGML_TYPE_I32) {
            // A module whose alpha is none is left out and said; elsewhere one such value spoils the whole picture.
            const int64_t count = ggml_nelements(tensor);
            if (count > 1 && !all_finite(static_cast<const float*>(tensor->data), count)) {
                throw std::runtime_error("LoRA: " + file_path + ": the tensor '" + name +
                                         "' has values that are not finite (NaN or infinite); the file is damaged, "
                                         "fetch it again");
            }
            continue;
        }
        tensor->type = GGML_TYPE_F32;
        for (int64_t i = 0; i < ggml_nelements(tensor); ++i) {
            const int32_t whole = static_cast<const int32_t*>(tensor->data)[i];
            static_cast<float*>(tensor->data)[i] = static_cast<float>(whole);
        }
    }
}

}  // namespace sdcpp
