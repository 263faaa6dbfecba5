// What a module's weights occupy in memory and what was copied for them: the source of the memory and the transfer
// report.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ggml-backend.h"

namespace sdcpp {

struct Memory {
    std::string wanted;                        // buffer type that was asked for first
    std::map<std::string, uint64_t> per_type;  // buffer type that was given -> bytes
    uint64_t bytes = 0;
    uint64_t pinned_bytes = 0;
    uint64_t disk_bytes = 0;  // that stay in the model's files, and count in no other number but `tensors`
    uint64_t tensors = 0;
    std::string reason;  // why the weights are not as wanted
};

struct Transfers {
    uint64_t to_device_pinned = 0;
    uint64_t to_device_pageable = 0;
    uint64_t from_device = 0;
    uint64_t copies = 0;
    double seconds = 0.0;
    uint64_t from_disk = 0;
    double disk_seconds = 0.0;  // summed over the threads that read
};

// The record of one module's weights in one context. Threads that read a checkpoint write to it at once.
class WeightsRecord {
public:
    WeightsRecord(std::string module, std::string runtime_device, std::string params_device);

    const std::string module;
    const std::string runtime_device;
    const std::string params_device;

    Memory memory() const;
    Transfers transfers() const;
    // Tells whether weights were ever allocated for this module.
    bool used() const;

    void wanted(const std::string& buffer_type);
    void missed(const std::string& reason);
    void copied(bool to_device, bool pinned, uint64_t bytes, double seconds);
    void read(uint64_t bytes, double seconds);
    // Adds what copies took that were noted without their seconds.
    void took(double seconds);
    // Notes that the weights have other values now, and tells how often they had.
    void changed() { ++changes_; }
    uint64_t changes() const { return changes_; }

private:
    friend class AllocatedWeights;
    mutable std::mutex mutex;
    Memory memory_;
    Transfers transfers_;
    bool used_ = false;
    std::atomic<uint64_t> changes_{0};
};

// The weights of one runner while they are allocated. Their buffers are known to the process, so that a copy to or from
// any of them is counted on their module's record.
class AllocatedWeights {
public:
    ~AllocatedWeights() { forget(); }
    // Counts the tensors of a context that was allocated; pinned is the buffer type that counts as pinned, or NULL.
    // Returns the name of a buffer type that was given instead of pinned, or "".
    // kept: what host memory keeps of those on disk, or NULL.
    std::string count(std::shared_ptr<WeightsRecord> owner, ggml_context* ctx, ggml_backend_buffer_type_t pinned,
                      ggml_backend_buffer_t kept = nullptr);
    // Takes them off the record, before they are freed; does nothing when there are none.
    void forget();

private:
    std::shared_ptr<WeightsRecord> record;
    std::vector<ggml_backend_buffer_t> buffers;
    Memory share;
};

// A buffer of weights, as far as the process knows it.
struct WeightsBuffer {
    std::shared_ptr<WeightsRecord> record;  // NULL: not known as weights
    bool pinned = false;                    // in the host buffer type of the device that uses it
};

// Tells whether a buffer of weights is in the host buffer type of the device that uses it.
bool weights_pinned(ggml_backend_buffer_t buffer);
// Notes that a weight has another value now.
void weights_changed(const ggml_tensor* tensor);
// Returns what is known of a buffer.
WeightsBuffer weights_buffer(ggml_backend_buffer_t buffer);
// Returns what is known of the buffer that host memory lies in.
WeightsBuffer weights_buffer(const void* data);
// Returns the buffer that a tensor or the one it views lies in; NULL before it is allocated.
ggml_backend_buffer_t buffer_of(const ggml_tensor* tensor);

}  // namespace sdcpp
