// What the parts of the loopback accelerator's ggml interface share.
#pragma once

#include <mutex>

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "loopback_state.h"

using loopback::Device;
using loopback::Event;
using loopback::Memory;
using loopback::State;
using loopback::Stream;

using Lock = std::lock_guard<std::mutex>;

constexpr size_t BUFFER_ALIGNMENT = 128;

extern const ggml_backend_buffer_type_i DEVICE_BUFFER_TYPE;
extern const ggml_backend_buffer_type_i HOST_BUFFER_TYPE;

// What the registry offers as "sdcpp_memory_lock" and "sdcpp_memory_unlock".
bool lock_memory(ggml_backend_dev_t dev, void* data, size_t size);
void unlock_memory(ggml_backend_dev_t dev, void* data);

bool is_device_buffer(ggml_backend_buffer_t buffer);

ggml_backend_i stream_interface(const loopback_config& config);
ggml_guid_t stream_guid();

inline Device& device_of(ggml_backend_dev_t dev) {
    return *static_cast<Device*>(dev->context);
}

inline Device& device_of(ggml_backend_buffer_type_t buft) {
    return *static_cast<Device*>(buft->context);
}

inline Memory& memory_of(ggml_backend_buffer_t buffer) {
    return *static_cast<Memory*>(buffer->context);
}

inline Stream& stream_of(ggml_backend_t backend) {
    return *static_cast<Stream*>(backend->context);
}

inline ggml_backend_buffer_t buffer_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
}
