// A runner's weights that stay in the model's files. Their tensors lie in a ggml buffer of the type "disk": addresses
// without memory, which streaming copies from by way of sdcpp/disk/read_ahead.h. ggml can read such tensors, and change
// none. The file's numbers become those of the tensor's type as they are read, by the loader's own functions, row by
// row; what the loader can only read whole lies in host memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "sdcpp/disk/disk_file.h"

struct TensorStorage;

namespace sdcpp {

class WeightsRecord;

class DiskWeights {
public:
    // Gives tensors of a context addresses, but for the small ones, which LoRAs change, and for as many others as
    // `keep_bytes` hold, evenly among them, which are less by these then: they are the caller's to allocate. NULL where
    // nothing is left.
    static std::unique_ptr<DiskWeights> place(ggml_context* ctx, uint64_t& keep_bytes,
                                              std::shared_ptr<WeightsRecord> record);
    ~DiskWeights();
    DiskWeights(const DiskWeights&) = delete;
    DiskWeights& operator=(const DiskWeights&) = delete;

    // Its owner frees it before this ends.
    ggml_backend_buffer_t buffer() const { return buffer_; }
    bool contains(const void* address) const;

    // Notes where a tensor is in which file. False for one that has to be read whole: it has host memory now.
    bool leave(const TensorStorage& storage, const std::string& path, ggml_tensor* tensor);
    // Reads what would lie at an address, on any thread; throws DiskError.
    void read(const void* address, void* to, size_t bytes) const;
    // Throws DiskError when a file was written to meanwhile.
    void check() const;

private:
    struct Place;

    DiskWeights() = default;
    void read_part(const Place& place, uint64_t begin, char* to, size_t bytes) const;

    std::shared_ptr<WeightsRecord> record_;
    ggml_backend_buffer_t buffer_ = nullptr;
    char* base_ = nullptr;
    size_t bytes_ = 0;
    std::mutex mutex_;
    std::map<std::string, std::shared_ptr<DiskFile>> files_;
    std::map<uint64_t, std::unique_ptr<Place>> places_;  // by the offset from the base
    std::vector<ggml_backend_buffer_ptr> whole_;         // of tensors that are read whole
};

// Returns the weights on disk that a tensor is one of; NULL for any other tensor.
DiskWeights* disk_weights_of(const ggml_tensor* tensor);
// Tells, while a file is loaded, whether a tensor stays there.
bool left_on_disk(const TensorStorage& storage, const std::string& path, ggml_tensor* tensor);

}  // namespace sdcpp
