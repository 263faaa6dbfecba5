// Which buffers hold weights, and whose.
#include "sdcpp/placement/weights_record.h"

#include <cstdint>
#include <unordered_map>
#include <utility>

#include "ggml.h"
#include "sdcpp/disk/disk_weights.h"

namespace {

using sdcpp::WeightsBuffer;

// Every buffer of weights in the process. A multi-buffer is here as its parts, which are what tensors point to.
struct Registry {
    std::mutex mutex;
    std::unordered_map<ggml_backend_buffer_t, WeightsBuffer> buffers;
    std::map<uintptr_t, ggml_backend_buffer_t> host;  // first address -> buffer
};

Registry& registry() {
    // Never destroyed: contexts may be freed by the destructors of other statics.
    static Registry* const instance = new Registry;
    return *instance;
}

}  // namespace

namespace sdcpp {

WeightsRecord::WeightsRecord(std::string module, std::string runtime_device, std::string params_device)
    : module(std::move(module)), runtime_device(std::move(runtime_device)), params_device(std::move(params_device)) {}

Memory WeightsRecord::memory() const {
    std::lock_guard<std::mutex> lock(mutex);
    return memory_;
}

Transfers WeightsRecord::transfers() const {
    std::lock_guard<std::mutex> lock(mutex);
    return transfers_;
}

bool WeightsRecord::used() const {
    std::lock_guard<std::mutex> lock(mutex);
    return used_;
}

void WeightsRecord::wanted(const std::string& buffer_type) {
    std::lock_guard<std::mutex> lock(mutex);
    memory_.wanted = buffer_type;
}

void WeightsRecord::missed(const std::string& reason) {
    std::lock_guard<std::mutex> lock(mutex);
    memory_.reason = reason;
}

void WeightsRecord::copied(bool to_device, bool pinned, uint64_t bytes, double seconds) {
    std::lock_guard<std::mutex> lock(mutex);
    if (to_device) {
        (pinned ? transfers_.to_device_pinned : transfers_.to_device_pageable) += bytes;
    } else {
        transfers_.from_device += bytes;
    }
    transfers_.copies += 1;
    transfers_.seconds += seconds;
}

void WeightsRecord::read(uint64_t bytes, double seconds) {
    std::lock_guard<std::mutex> lock(mutex);
    transfers_.from_disk += bytes;
    transfers_.disk_seconds += seconds;
}

void WeightsRecord::took(double seconds) {
    std::lock_guard<std::mutex> lock(mutex);
    transfers_.seconds += seconds;
}

std::string AllocatedWeights::count(std::shared_ptr<WeightsRecord> owner, ggml_context* ctx,
                                    ggml_backend_buffer_type_t pinned, ggml_backend_buffer_t kept) {
    forget();
    record = std::move(owner);
    std::string other;
    Registry& all = registry();
    std::lock_guard<std::mutex> lock(all.mutex);
    const auto add = [&](ggml_backend_buffer_t buffer, bool on_disk) {
        if (buffer == nullptr || all.buffers.count(buffer) != 0) {
            return;
        }
        // The buffer's own type decides: a device may answer a request for its host buffer type with plain memory.
        ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(buffer);
        const bool is_pinned = pinned != nullptr && type == pinned;
        if (pinned != nullptr && !is_pinned && !on_disk) {
            other = ggml_backend_buft_name(type);
        }
        const uint64_t size = ggml_backend_buffer_get_size(buffer);
        share.per_type[ggml_backend_buft_name(type)] += size;
        buffers.push_back(buffer);
        all.buffers[buffer] = {record, is_pinned};
        if (on_disk) {
            return;
        }
        share.bytes += size;
        share.pinned_bytes += is_pinned ? size : 0;
        if (ggml_backend_buffer_is_host(buffer)) {
            all.host[reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(buffer))] = buffer;
        }
    };
    for (ggml_tensor* tensor = ggml_get_first_tensor(ctx); tensor != nullptr;
         tensor = ggml_get_next_tensor(ctx, tensor)) {
        share.tensors += 1;
        const bool on_disk = disk_weights_of(tensor) != nullptr;
        share.disk_bytes += on_disk && tensor->view_src == nullptr ? ggml_nbytes(tensor) : 0;
        add(buffer_of(tensor), on_disk);
    }
    if (kept != nullptr) {
        add(kept, false);
        share.disk_bytes -= ggml_backend_buffer_get_size(kept);
    }
    std::lock_guard<std::mutex> record_lock(record->mutex);
    record->used_ = true;
    record->memory_.bytes += share.bytes;
    record->memory_.pinned_bytes += share.pinned_bytes;
    record->memory_.disk_bytes += share.disk_bytes;
    record->memory_.tensors += share.tensors;
    for (const auto& [type, size] : share.per_type) {
        record->memory_.per_type[type] += size;
    }
    return other;
}

void AllocatedWeights::forget() {
    if (!record) {
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
        std::lock_guard<std::mutex> lock(record->mutex);
        record->memory_.bytes -= share.bytes;
        record->memory_.pinned_bytes -= share.pinned_bytes;
        record->memory_.disk_bytes -= share.disk_bytes;
        record->memory_.tensors -= share.tensors;
        for (const auto& [type, size] : share.per_type) {
            if ((record->memory_.per_type[type] -= size) == 0) {
                record->memory_.per_type.erase(type);
            }
        }
    }
    record.reset();
    buffers.clear();
    share = Memory{};
}

ggml_backend_buffer_t buffer_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
}

WeightsBuffer weights_buffer(ggml_backend_buffer_t buffer) {
    Registry& all = registry();
    std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.buffers.find(buffer);
    return found != all.buffers.end() ? found->second : WeightsBuffer{};
}

WeightsBuffer weights_buffer(const void* data) {
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

bool weights_pinned(ggml_backend_buffer_t buffer) {
    return weights_buffer(buffer).pinned;
}

void weights_changed(const ggml_tensor* tensor) {
    if (const WeightsBuffer weights = weights_buffer(buffer_of(tensor)); weights.record) {
        weights.record->changed();
    }
}

}  // namespace sdcpp
