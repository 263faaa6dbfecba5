// The books of weights: which buffers hold them, and every copy of them.
#include "sdcpp/placement/books.h"

#include <chrono>
#include <cstdint>
#include <unordered_map>
#include <utility>

#include "ggml.h"
#include "sdcpp/placement/placement.h"

namespace {

using sdcpp::Book;

struct Entry {
    std::shared_ptr<Book> book;
    bool pinned = false;
};

// Every buffer of weights in the process. A multi-buffer is here as its parts, which are what tensors point to.
struct Registry {
    std::mutex mutex;
    std::unordered_map<ggml_backend_buffer_t, Entry> buffers;
    std::map<uintptr_t, ggml_backend_buffer_t> host;  // first address -> buffer
};

Registry& registry() {
    // Never destroyed: contexts may be freed by the destructors of other statics.
    static Registry* const instance = new Registry;
    return *instance;
}

ggml_backend_buffer_t buffer_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
}

bool on_host(const ggml_tensor* tensor) {
    ggml_backend_buffer_t buffer = buffer_of(tensor);
    return buffer == nullptr || ggml_backend_buffer_is_host(buffer);
}

Entry find(ggml_backend_buffer_t buffer) {
    Registry& all = registry();
    std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.buffers.find(buffer);
    return found != all.buffers.end() ? found->second : Entry{};
}

Entry find(const void* data) {
    Registry& all = registry();
    std::lock_guard<std::mutex> lock(all.mutex);
    auto next = all.host.upper_bound(reinterpret_cast<uintptr_t>(data));
    if (next == all.host.begin()) {
        return {};
    }
    const auto& [base, buffer] = *--next;
    if (reinterpret_cast<uintptr_t>(data) - base >= ggml_backend_buffer_get_size(buffer)) {
        return {};
    }
    return all.buffers.at(buffer);
}

template <typename F>
void timed_copy(const Entry& entry, bool to_device, uint64_t bytes, F&& copy) {
    const auto begin = std::chrono::steady_clock::now();
    copy();
    if (entry.book) {
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        entry.book->copied(to_device, entry.pinned, bytes, seconds.count());
    }
}

}  // namespace

namespace sdcpp {

Book::Book(std::string module, std::string runtime_device, std::string params_device)
    : module(std::move(module)), runtime_device(std::move(runtime_device)), params_device(std::move(params_device)) {}

Memory Book::memory() const {
    std::lock_guard<std::mutex> lock(mutex);
    return memory_;
}

Transfers Book::transfers() const {
    std::lock_guard<std::mutex> lock(mutex);
    return transfers_;
}

bool Book::used() const {
    std::lock_guard<std::mutex> lock(mutex);
    return used_;
}

void Book::wanted(const std::string& buffer_type) {
    std::lock_guard<std::mutex> lock(mutex);
    memory_.wanted = buffer_type;
}

void Book::missed(const std::string& reason) {
    std::lock_guard<std::mutex> lock(mutex);
    memory_.reason = reason;
}

void Book::copied(bool to_device, bool pinned, uint64_t bytes, double seconds) {
    std::lock_guard<std::mutex> lock(mutex);
    if (to_device) {
        (pinned ? transfers_.to_device_pinned : transfers_.to_device_pageable) += bytes;
    } else {
        transfers_.from_device += bytes;
    }
    transfers_.copies += 1;
    transfers_.seconds += seconds;
}

void Book::took(double seconds) {
    std::lock_guard<std::mutex> lock(mutex);
    transfers_.seconds += seconds;
}

std::string Shelf::put(std::shared_ptr<Book> owner, ggml_context* ctx, ggml_backend_buffer_type_t pinned) {
    take_out();
    book = std::move(owner);
    std::string other;
    Registry& all = registry();
    std::lock_guard<std::mutex> lock(all.mutex);
    for (ggml_tensor* tensor = ggml_get_first_tensor(ctx); tensor != nullptr;
         tensor = ggml_get_next_tensor(ctx, tensor)) {
        share.tensors += 1;
        ggml_backend_buffer_t buffer = buffer_of(tensor);
        if (buffer == nullptr || all.buffers.count(buffer) != 0) {
            continue;
        }
        // The buffer's own type decides: a device may answer a request for its host buffer type with plain memory.
        ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(buffer);
        const bool is_pinned = pinned != nullptr && type == pinned;
        if (pinned != nullptr && !is_pinned) {
            other = ggml_backend_buft_name(type);
        }
        const uint64_t size = ggml_backend_buffer_get_size(buffer);
        share.bytes += size;
        share.pinned_bytes += is_pinned ? size : 0;
        share.per_type[ggml_backend_buft_name(type)] += size;
        buffers.push_back(buffer);
        all.buffers[buffer] = {book, is_pinned};
        if (ggml_backend_buffer_is_host(buffer)) {
            all.host[reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(buffer))] = buffer;
        }
    }
    std::lock_guard<std::mutex> book_lock(book->mutex);
    book->used_ = true;
    book->memory_.bytes += share.bytes;
    book->memory_.pinned_bytes += share.pinned_bytes;
    book->memory_.tensors += share.tensors;
    for (const auto& [type, size] : share.per_type) {
        book->memory_.per_type[type] += size;
    }
    return other;
}

void Shelf::take_out() {
    if (!book) {
        return;
    }
    {
        Registry& all = registry();
        std::lock_guard<std::mutex> lock(all.mutex);
        for (ggml_backend_buffer_t buffer : buffers) {
            if (ggml_backend_buffer_is_host(buffer)) {
                all.host.erase(reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(buffer)));
            }
            all.buffers.erase(buffer);
        }
    }
    {
        std::lock_guard<std::mutex> lock(book->mutex);
        book->memory_.bytes -= share.bytes;
        book->memory_.pinned_bytes -= share.pinned_bytes;
        book->memory_.tensors -= share.tensors;
        for (const auto& [type, size] : share.per_type) {
            if ((book->memory_.per_type[type] -= size) == 0) {
                book->memory_.per_type.erase(type);
            }
        }
    }
    book.reset();
    buffers.clear();
    share = Memory{};
}

bool weights_elsewhere(const ggml_tensor* tensor, ggml_backend_t backend) {
    ggml_backend_buffer_t buffer = buffer_of(tensor);
    if (buffer == nullptr) {
        return false;
    }
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    const bool cpu = device != nullptr && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
    // A host buffer counts as elsewhere even for a device that could read it: that is the engine's rule.
    return (!cpu && ggml_backend_buffer_is_host(buffer)) ||
           !ggml_backend_supports_buft(backend, ggml_backend_buffer_get_type(buffer));
}

bool weights_pinned(ggml_backend_buffer_t buffer) {
    return find(buffer).pinned;
}

void weights_changed(const ggml_tensor* tensor) {
    if (const Entry entry = find(buffer_of(tensor)); entry.book) {
        entry.book->changed();
    }
}

void weights_copy(ggml_tensor* src, ggml_tensor* dst) {
    const bool to_device = !on_host(dst);
    weights_changed(dst);
    if (!to_device && on_host(src)) {
        ggml_backend_tensor_copy(src, dst);
        return;
    }
    Entry entry = find(buffer_of(src));
    if (!entry.book) {
        entry = find(buffer_of(dst));
    }
    timed_copy(entry, to_device, ggml_nbytes(src), [&] { ggml_backend_tensor_copy(src, dst); });
}

void weights_set(ggml_tensor* tensor, const void* data, size_t offset, size_t size) {
    Entry entry;
    if (!on_host(tensor)) {
        entry = find(data);
        if (!entry.book) {
            entry = find(buffer_of(tensor));
            entry.pinned = false;
        }
    }
    timed_copy(entry, true, size, [&] { ggml_backend_tensor_set(tensor, data, offset, size); });
}

void weights_get(const ggml_tensor* tensor, void* data, size_t offset, size_t size) {
    const Entry entry = on_host(tensor) ? Entry{} : find(buffer_of(tensor));
    timed_copy(entry, false, size, [&] { ggml_backend_tensor_get(tensor, data, offset, size); });
}

const void* HostCopies::data_of(const ggml_tensor* tensor) {
    if (on_host(tensor)) {
        return tensor->data;
    }
    copies.emplace_back(ggml_nbytes(tensor));
    weights_get(tensor, copies.back().data(), 0, copies.back().size());
    return copies.back().data();
}

}  // namespace sdcpp
