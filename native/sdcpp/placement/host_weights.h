// A runner's weights in host memory of ours, which the device that uses them reads by DMA once they are settled.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "sdcpp/placement/locked_memory.h"

namespace sdcpp {

class HostWeights {
public:
    // Allocates the tensors of a context, at first as memory of a plain type, and lets them be locked for a device; NULL
    // where its backend lets nobody lock memory, or there is none.
    static std::unique_ptr<HostWeights> alloc(MemoryLocker& locker, ggml_backend_dev_t dev,
                                              ggml_backend_buffer_type_t plain, ggml_context* ctx);
    // Gives the memory back, once the buffer was freed.
    ~HostWeights();
    HostWeights(const HostWeights&) = delete;
    HostWeights& operator=(const HostWeights&) = delete;

    // The tensors' buffer, of one part or of several. Whoever frees the runner's weights frees it.
    ggml_backend_buffer_t buffer() const { return whole_; }
    // Waits until the memory was locked: the buffer is one of the device's host buffer type then. Else false, and it is
    // plain memory.
    bool settle();

private:
    explicit HostWeights(MemoryLocker& locker) : locker_(locker) {}

    MemoryLocker& locker_;
    ggml_backend_buffer_type_t type_ = nullptr;
    LockedParts memory_;
    std::vector<ggml_backend_buffer_t> buffers_;  // of the parts
    ggml_backend_buffer_t whole_ = nullptr;
};

}  // namespace sdcpp
