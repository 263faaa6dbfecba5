// Buffers and buffer types of the loopback accelerator: device memory, its host buffers, and plain memory.
#include <sys/mman.h>

#include <cstring>

#include "ggml-impl.h"
#include "loopback_interface.h"

// --- buffers ---------------------------------------------------------------------------------------------------------

static void buffer_free(ggml_backend_buffer_t buffer) {
    State& state = State::get();
    Lock lock(state.mutex);
    if (memory_of(buffer).device != nullptr) {
        State::check_health(*memory_of(buffer).device);
    }
    state.free(&memory_of(buffer));
}

static void* buffer_get_base(ggml_backend_buffer_t buffer) {
    return reinterpret_cast<void*>(memory_of(buffer).base);
}

static void device_memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, uint8_t value, size_t offset,
                                 size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.fill(memory_of(buffer), reinterpret_cast<uintptr_t>(tensor->data) + offset, value, size);
}

static void device_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset,
                              size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.upload(*memory_of(buffer).device, nullptr, tensor, data, offset, size);
}

static void device_get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset,
                              size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.download(*memory_of(buffer).device, nullptr, tensor, data, offset, size);
}

bool is_device_buffer(ggml_backend_buffer_t buffer) {
    return buffer != nullptr && buffer->iface.set_tensor == device_set_tensor;
}

static bool device_cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* src, ggml_tensor* dst) {
    if (!is_device_buffer(buffer_of(src))) {
        return false;
    }
    State& state = State::get();
    Lock lock(state.mutex);
    state.copy(*memory_of(buffer).device, nullptr, src, dst);
    return true;
}

static void device_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    State& state = State::get();
    Lock lock(state.mutex);
    Memory& memory = memory_of(buffer);
    state.fill(memory, memory.base, value, memory.size);
}

static const ggml_backend_buffer_i DEVICE_BUFFER = {
    /* .free_buffer   = */ buffer_free,
    /* .get_base      = */ buffer_get_base,
    /* .init_tensor   = */ nullptr,
    /* .memset_tensor = */ device_memset_tensor,
    /* .set_tensor    = */ device_set_tensor,
    /* .get_tensor    = */ device_get_tensor,
    /* .cpy_tensor    = */ device_cpy_tensor,
    /* .clear         = */ device_clear,
    /* .reset         = */ nullptr,
};

static void host_memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, uint8_t value, size_t offset,
                               size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    char* target = static_cast<char*>(tensor->data) + offset;
    state.host_write(memory_of(buffer), target, size);
    memset(target, value, size);
}

static void host_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset,
                            size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    char* target = static_cast<char*>(tensor->data) + offset;
    state.host_write(memory_of(buffer), target, size);
    memcpy(target, data, size);
}

static void host_get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset,
                            size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    const char* source = static_cast<const char*>(tensor->data) + offset;
    state.host_read(memory_of(buffer), source, size);
    memcpy(data, source, size);
}

static bool host_cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* src, ggml_tensor* dst) {
    if (!ggml_backend_buffer_is_host(buffer_of(src))) {
        return false;
    }
    host_set_tensor(buffer, dst, src->data, 0, ggml_nbytes(src));
    return true;
}

static void host_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    State& state = State::get();
    Lock lock(state.mutex);
    Memory& memory = memory_of(buffer);
    state.host_write(memory, memory.bytes.data(), memory.size);
    memset(memory.bytes.data(), value, memory.size);
}

static const ggml_backend_buffer_i HOST_BUFFER = {
    /* .free_buffer   = */ buffer_free,
    /* .get_base      = */ buffer_get_base,
    /* .init_tensor   = */ nullptr,
    /* .memset_tensor = */ host_memset_tensor,
    /* .set_tensor    = */ host_set_tensor,
    /* .get_tensor    = */ host_get_tensor,
    /* .cpy_tensor    = */ host_cpy_tensor,
    /* .clear         = */ host_clear,
    /* .reset         = */ nullptr,
};

// --- buffer types ----------------------------------------------------------------------------------------------------

static size_t buft_alignment(ggml_backend_buffer_type_t) {
    return BUFFER_ALIGNMENT;
}

static const char* device_buft_name(ggml_backend_buffer_type_t buft) {
    return device_of(buft).name.c_str();
}

static ggml_backend_buffer_t device_buft_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    State& state = State::get();
    {
        Lock lock(state.mutex);
        Memory* memory = state.alloc_device(device_of(buft), size);
        if (memory != nullptr) {
            memory->buffer = ggml_backend_buffer_init(buft, DEVICE_BUFFER, memory, size);
            return memory->buffer;
        }
    }
    // Without the lock, because a log callback may use the control interface.
    GGML_LOG_ERROR("%s: allocating %.2f MiB of device memory was refused\n", device_buft_name(buft),
                   static_cast<double>(size) / (1024 * 1024));
    return nullptr;
}

static size_t device_buft_max_size(ggml_backend_buffer_type_t buft) {
    State& state = State::get();
    Lock lock(state.mutex);
    const int64_t size = device_of(buft).config.max_buffer_size;
    return size > 0 ? static_cast<size_t>(size) : SIZE_MAX;
}

static size_t device_buft_alloc_size(ggml_backend_buffer_type_t buft, const ggml_tensor* tensor) {
    State& state = State::get();
    Lock lock(state.mutex);
    const int64_t padding = device_of(buft).config.quantized_row_padding;
    size_t size = ggml_nbytes(tensor);
    if (padding > 0 && ggml_is_quantized(tensor->type) && tensor->ne[0] % padding != 0) {
        size += ggml_row_size(tensor->type, padding - tensor->ne[0] % padding);
    }
    return size;
}

static bool buft_is_not_host(ggml_backend_buffer_type_t) {
    return false;
}

static bool buft_is_host(ggml_backend_buffer_type_t) {
    return true;
}

static const char* host_buft_name(ggml_backend_buffer_type_t) {
    return "Loopback_Host";
}

static ggml_backend_buffer_t host_buft_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    State& state = State::get();
    bool fallback;
    {
        Lock lock(state.mutex);
        Device& device = device_of(buft);
        Memory* memory = state.alloc_host(device, size);
        if (memory != nullptr) {
            memory->buffer = ggml_backend_buffer_init(buft, HOST_BUFFER, memory, size);
            return memory->buffer;
        }
        fallback = device.config.host_fallback != 0;
    }
    return fallback ? ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size) : nullptr;
}

bool lock_memory(ggml_backend_dev_t dev, void* data, size_t size) {
    State& state = State::get();
    bool really;
    {
        Lock lock(state.mutex);
        really = device_of(dev).config.lock_pages != 0;
    }
    if (really) {
        mlock(data, size);  // several threads do at once
    }
    Lock lock(state.mutex);
    return state.lock_host(device_of(dev), data, size) != nullptr;
}

void unlock_memory(ggml_backend_dev_t dev, void* data) {
    State& state = State::get();
    size_t size;
    bool really;
    {
        Lock lock(state.mutex);
        Memory* const memory = state.find(data);
        size = memory->size;
        really = device_of(dev).config.lock_pages != 0;
        state.free(memory);
    }
    if (really) {
        munlock(data, size);  // several threads do at once
    }
}

static const char* pageable_buft_name(ggml_backend_buffer_type_t) {
    return "Loopback_Pageable";
}

static void pageable_buffer_free(ggml_backend_buffer_t buffer) {
    munmap(buffer->context, buffer->size);
}

static ggml_backend_buffer_t pageable_buft_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
        return nullptr;
    }
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(data, size);
    buffer->buft = buft;
    buffer->iface.free_buffer = pageable_buffer_free;
    return buffer;
}

void* loopback_pageable_buffer_type(void) {
    static ggml_backend_buffer_type type = {
        {
            /* .get_name       = */ pageable_buft_name,
            /* .alloc_buffer   = */ pageable_buft_alloc,
            /* .get_alignment  = */ buft_alignment,
            /* .get_max_size   = */ nullptr,
            /* .get_alloc_size = */ nullptr,
            /* .is_host        = */ buft_is_host,
        },
        /* .device  = */ nullptr,
        /* .context = */ nullptr,
    };
    return &type;
}

const ggml_backend_buffer_type_i DEVICE_BUFFER_TYPE = {
    /* .get_name       = */ device_buft_name,
    /* .alloc_buffer   = */ device_buft_alloc,
    /* .get_alignment  = */ buft_alignment,
    /* .get_max_size   = */ device_buft_max_size,
    /* .get_alloc_size = */ device_buft_alloc_size,
    /* .is_host        = */ buft_is_not_host,
};

const ggml_backend_buffer_type_i HOST_BUFFER_TYPE = {
    /* .get_name       = */ host_buft_name,
    /* .alloc_buffer   = */ host_buft_alloc,
    /* .get_alignment  = */ buft_alignment,
    /* .get_max_size   = */ nullptr,
    /* .get_alloc_size = */ nullptr,
    /* .is_host        = */ buft_is_host,
};
