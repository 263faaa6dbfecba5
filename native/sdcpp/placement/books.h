// What a module's weights occupy and what was copied for them.
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
    std::string wanted;                         // buffer type that was asked for first
    std::map<std::string, uint64_t> per_type;   // buffer type that was given -> bytes
    uint64_t bytes = 0;
    uint64_t pinned_bytes = 0;
    uint64_t tensors = 0;
    std::string reason;                         // why the weights are not as wanted
};

struct Transfers {
    uint64_t to_device_pinned = 0;
    uint64_t to_device_pageable = 0;
    uint64_t from_device = 0;
    uint64_t copies = 0;
    double seconds = 0.0;
};

// The book of one module in one context. Threads that read a checkpoint write to it at once.
class Book {
public:
    Book(std::string module, std::string runtime_device, std::string params_device);

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
    // Adds what copies took that were noted without their seconds.
    void took(double seconds);
    // Notes that the weights have other values now, and tells how often they had.
    void changed() { ++changes_; }
    uint64_t changes() const { return changes_; }

private:
    friend class Shelf;
    mutable std::mutex mutex;
    Memory memory_;
    Transfers transfers_;
    bool used_ = false;
    std::atomic<uint64_t> changes_{0};
};

// Tells whether a buffer of weights is in the host buffer type of the device that uses it.
bool weights_pinned(ggml_backend_buffer_t buffer);
// Notes that a weight has another value now.
void weights_changed(const ggml_tensor* tensor);

// The weights of one runner, on the shelf: their buffers are known, so that copies of them can be booked.
class Shelf {
public:
    ~Shelf() { take_out(); }
    // Books the tensors of a context that was allocated; pinned is the buffer type that counts as pinned, or NULL.
    // Returns the name of a buffer type that was given instead of pinned, or "".
    std::string put(std::shared_ptr<Book> book, ggml_context* ctx, ggml_backend_buffer_type_t pinned);
    // Takes them out again; does nothing when there are none.
    void take_out();

private:
    std::shared_ptr<Book> book;
    std::vector<ggml_backend_buffer_t> buffers;
    Memory share;
};

}  // namespace sdcpp
