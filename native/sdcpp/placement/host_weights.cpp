#include "sdcpp/placement/host_weights.h"

#include <utility>

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "sdcpp/placement/device.h"
#include "sdcpp/streaming/test_hooks.h"

namespace sdcpp {

namespace {

// Several of them are faulted in and locked at once. On 16 processors threads fault in 28 GB/s of parts of 64 MiB, and
// 14 of parts of 256 MiB; a device copies both as fast.
constexpr size_t part_bytes = 64u << 20;

bool lacks_memory(const ggml_tensor* tensor) {
    return tensor->data == nullptr && tensor->view_src == nullptr;
}

}  // namespace

std::unique_ptr<HostWeights> HostWeights::alloc(MemoryLocker& locker, ggml_backend_dev_t dev,
                                                ggml_backend_buffer_type_t plain, ggml_context* ctx) {
    const LockFunctions functions = lock_functions(dev);
    if (functions.lock == nullptr) {
        return nullptr;
    }
    const size_t most = test_part_bytes(part_bytes);
    std::unique_ptr<HostWeights> made(new HostWeights(locker));
    made->type_ = ggml_backend_dev_host_buffer_type(dev);
    const size_t alignment = ggml_backend_buft_get_alignment(made->type_);
    const auto size_of = [&](const ggml_tensor* tensor) {
        return GGML_PAD(ggml_backend_buft_get_alloc_size(made->type_, tensor), alignment);
    };
    ggml_tensor* next = ggml_get_first_tensor(ctx);
    while (next != nullptr) {
        ggml_tensor* const first = next;
        size_t bytes = 0;
        for (; next != nullptr; next = ggml_get_next_tensor(ctx, next)) {
            const size_t more = lacks_memory(next) ? size_of(next) : 0;
            if (bytes > 0 && bytes + more > most) {
                break;
            }
            bytes += more;
        }
        auto part = bytes > 0 ? LockedMemory::take(dev, functions, bytes, locker.takes_large()) : nullptr;
        if (part == nullptr) {
            if (bytes == 0) {
                break;
            }
            for (ggml_backend_buffer_t buffer : made->buffers_) {
                ggml_backend_buffer_free(buffer);
            }
            forget_buffers(ctx);
            return nullptr;
        }
        ggml_backend_buffer_t const buffer = ggml_backend_cpu_buffer_from_ptr(part->data(), bytes);
        buffer->buft = plain;
        size_t offset = 0;
        for (ggml_tensor* tensor = first; tensor != next; tensor = ggml_get_next_tensor(ctx, tensor)) {
            if (lacks_memory(tensor)) {
                ggml_backend_tensor_alloc(buffer, tensor, part->data() + offset);
                offset += size_of(tensor);
            }
        }
        made->buffers_.push_back(buffer);
        made->memory_.parts.push_back(std::move(part));
    }
    for (ggml_tensor* t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        if (t->view_src != nullptr && t->buffer == nullptr) {
            ggml_backend_view_init(t);
        }
    }
    auto& buffers = made->buffers_;
    if (buffers.empty()) {
        return nullptr;
    }
    made->whole_ = buffers.size() == 1 ? buffers.front()
                                       : ggml_backend_multi_buffer_alloc_buffer(buffers.data(), buffers.size());
    locker.add(made->memory_);
    return made;
}

HostWeights::~HostWeights() {
    locker_.give_up(memory_);
}

bool HostWeights::settle() {
    if (!locker_.wait(memory_)) {
        return false;
    }
    for (ggml_backend_buffer_t buffer : buffers_) {
        buffer->buft = type_;
    }
    return true;
}

}  // namespace sdcpp
