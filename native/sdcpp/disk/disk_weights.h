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
#include "sdcpp/api/sdcpp.h"
#include "sdcpp/disk/disk_file.h"

struct TensorStorage;

namespace sdcpp {

class WeightsRecord;

class DiskWeights {
public:
    // Gives tensors of a context addresses, but for the small ones, which LoRAs change and the caller allocates. So many
    // bytes of them host memory may keep, which are less by these then; NULL where that is all of them. `past_cache`: the
    // system's cache has no room for the others.
    static std::unique_ptr<DiskWeights> place(ggml_context* ctx, uint64_t& keep_bytes, bool past_cache,
                                              std::shared_ptr<WeightsRecord> record);
    ~DiskWeights();
    DiskWeights(const DiskWeights&) = delete;
    DiskWeights& operator=(const DiskWeights&) = delete;

    // Its owner frees it before this ends.
    ggml_backend_buffer_t buffer() const { return buffer_; }
    bool contains(const void* address) const;

    // Takes host memory for what is kept: in a type of pinned memory, if there is one and it is given, else in plain one.
    void take_memory(ggml_backend_buffer_type_t pinned, ggml_backend_buffer_type_t plain);
    // That memory; NULL without any.
    ggml_backend_buffer_t memory() const { return memory_.get(); }
    // Something at an address, as long as it is read or kept as one.
    struct Part {
        const char* source;
        size_t bytes;
        char* kept;  // where host memory has it, or is to have it; NULL: it does not
    };
    // Chooses what is kept of some ranges of addresses, those first that are read often: what is kept of them already,
    // and evenly as much of the rest as there is memory. Returns what has to be read there now.
    std::vector<Part> keep(const std::vector<Part>& often, const std::vector<Part>& seldom);
    // Keeps nothing any more, where that could not be read.
    void keep_nothing();
    // Returns what is at an address, `most` bytes of it at most.
    Part part_at(const char* address, uint64_t most) const;

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
    bool past_cache_ = false;
    uint64_t may_keep_ = 0;
    ggml_backend_buffer_ptr memory_;
    std::vector<char*> kept_;  // of each block of the addresses; NULL: it is not
    std::vector<char*> free_;
};

// Returns the weights on disk that a tensor is one of; NULL for any other tensor.
DiskWeights* disk_weights_of(const ggml_tensor* tensor);
// Tells, while a file is loaded, whether a tensor stays there.
bool left_on_disk(const TensorStorage& storage, const std::string& path, ggml_tensor* tensor);
// Adds a tensor to what could stay in the model's files, if it could.
void count_stored(const TensorStorage& storage, const ggml_tensor* tensor, sdcpp_weights_t& weights);

}  // namespace sdcpp
