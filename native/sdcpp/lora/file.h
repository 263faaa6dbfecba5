// A LoRA's file: which tensors it has, their values in host memory, and what its metadata say.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "model.h"
#include "sdcpp/lora/change.h"
#include "sdcpp/lora/peft.h"

namespace sdcpp {

// Tells one version of a file from another, whatever its name.
struct FileIdentity {
    std::string path;
    uint64_t device = 0;
    uint64_t number = 0;
    uint64_t size = 0;
    int64_t modified = 0;  // nanoseconds
    int64_t changed = 0;   // likewise; no program can set it back

    bool operator==(const FileIdentity& other) const;
};

// Returns a file's identity; throws std::runtime_error when there is no such file.
FileIdentity file_identity(const std::string& path);

class LoraFile {
public:
    // Reads a file's header; throws std::runtime_error when it cannot be read or holds no tensors.
    explicit LoraFile(const std::string& path);
    ~LoraFile();
    LoraFile(const LoraFile&) = delete;
    LoraFile& operator=(const LoraFile&) = delete;

    const std::string& path() const { return file_path; }
    // Names of its tensors, in order.
    const std::vector<std::string>& names() const { return tensor_names; }
    // Returns a tensor's shape in the file's order.
    std::vector<int64_t> shape(const std::string& name);
    // Returns alpha / rank of a module whose alpha is no tensor; 1 when nothing says another.
    float scale(const std::string& module, int64_t rank) const { return peft.scale(module, rank); }

    // Reads tensors into host memory, as f32; once. Throws std::runtime_error when the file ends early.
    void load(const std::vector<std::string>& names, int n_threads);
    // Returns a tensor that was loaded.
    const Factor& factor(const std::string& name) const { return factors.at(name); }
    // Tells whether f16 holds the values of one of its tensors as the file does.
    bool is_half(const ggml_tensor* tensor) const { return halves.count(tensor) != 0; }

private:
    std::string file_path;
    PeftScales peft;
    std::unique_ptr<ModelLoader> loader;
    std::vector<std::string> tensor_names;
    std::map<std::string, Factor> factors;
    std::set<const ggml_tensor*> halves;
    ggml_context* ctx = nullptr;
    ggml_backend_buffer_t buffer = nullptr;
};

}  // namespace sdcpp
