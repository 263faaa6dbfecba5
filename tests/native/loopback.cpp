// The ggml interface of the loopback accelerator: registry, devices, buffer types, buffers and streams.
#include <sys/mman.h>

#include <cstring>

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-impl.h"
#include "loopback_config.h"
#include "loopback_state.h"

using loopback::Device;
using loopback::Event;
using loopback::Memory;
using loopback::State;
using loopback::Stream;

using Lock = std::lock_guard<std::mutex>;

static constexpr size_t BUFFER_ALIGNMENT = 128;

static Device& device_of(ggml_backend_dev_t dev) {
    return *static_cast<Device*>(dev->context);
}

static Device& device_of(ggml_backend_buffer_type_t buft) {
    return *static_cast<Device*>(buft->context);
}

static Memory& memory_of(ggml_backend_buffer_t buffer) {
    return *static_cast<Memory*>(buffer->context);
}

static Stream& stream_of(ggml_backend_t backend) {
    return *static_cast<Stream*>(backend->context);
}

// --- buffers ---------------------------------------------------------------------------------------------------------

static void buffer_free(ggml_backend_buffer_t buffer) {
    State& state = State::get();
    Lock lock(state.mutex);
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

static ggml_backend_buffer_t buffer_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
}

static bool is_device_buffer(ggml_backend_buffer_t buffer) {
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

// --- streams ---------------------------------------------------------------------------------------------------------

static const char* stream_name(ggml_backend_t backend) {
    return stream_of(backend).device->name.c_str();
}

static void stream_free(ggml_backend_t backend) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.free_stream(&stream_of(backend));
    delete backend;
}

static void stream_set_tensor(ggml_backend_t backend, ggml_tensor* tensor, const void* data, size_t offset,
                              size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    Stream& stream = stream_of(backend);
    state.upload(*stream.device, &stream, tensor, data, offset, size);
}

static void stream_get_tensor(ggml_backend_t backend, const ggml_tensor* tensor, void* data, size_t offset,
                              size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    Stream& stream = stream_of(backend);
    state.download(*stream.device, &stream, tensor, data, offset, size);
}

static bool is_stream(ggml_backend_t backend) {
    return backend->iface.get_name == stream_name;
}

static bool stream_cpy_tensor(ggml_backend_t backend_src, ggml_backend_t backend_dst, const ggml_tensor* src,
                              ggml_tensor* dst) {
    if (!is_stream(backend_src) || !is_stream(backend_dst) || !is_device_buffer(buffer_of(src)) ||
        !is_device_buffer(buffer_of(dst))) {
        return false;
    }
    State& state = State::get();
    Lock lock(state.mutex);
    Stream& from = stream_of(backend_src);
    Stream& to = stream_of(backend_dst);
    if (memory_of(buffer_of(src)).device != from.device || memory_of(buffer_of(dst)).device != to.device) {
        return false;
    }
    // As on CUDA the copy runs on the source's stream, and the destination's stream waits for it.
    state.copy(*from.device, &from, src, dst);
    if (&from != &to) {
        Event arrival;
        arrival.device = from.device;
        state.record(arrival, from);
        state.wait(arrival, to);
    }
    return true;
}

static void stream_synchronize(ggml_backend_t backend) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.synchronise(stream_of(backend));
}

static ggml_status stream_graph_compute(ggml_backend_t backend, ggml_cgraph* graph) {
    State& state = State::get();
    Lock lock(state.mutex);
    return state.compute(stream_of(backend), graph);
}

static void stream_event_record(ggml_backend_t backend, ggml_backend_event_t event) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.record(*static_cast<Event*>(event->context), stream_of(backend));
}

static void stream_event_wait(ggml_backend_t backend, ggml_backend_event_t event) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.wait(*static_cast<Event*>(event->context), stream_of(backend));
}

static ggml_backend_i stream_interface(const loopback_config& config) {
    const bool async = config.async != 0;
    const bool events = config.events != 0;
    return {
        /* .get_name           = */ stream_name,
        /* .free               = */ stream_free,
        /* .set_tensor_async   = */ async ? stream_set_tensor : nullptr,
        /* .get_tensor_async   = */ async ? stream_get_tensor : nullptr,
        /* .cpy_tensor_async   = */ async ? stream_cpy_tensor : nullptr,
        /* .synchronize        = */ stream_synchronize,
        /* .graph_plan_create  = */ nullptr,
        /* .graph_plan_free    = */ nullptr,
        /* .graph_plan_update  = */ nullptr,
        /* .graph_plan_compute = */ nullptr,
        /* .graph_compute      = */ stream_graph_compute,
        /* .event_record       = */ events ? stream_event_record : nullptr,
        /* .event_wait         = */ events ? stream_event_wait : nullptr,
        /* .graph_optimize     = */ nullptr,
    };
}

static ggml_guid_t stream_guid() {
    static ggml_guid guid = {0x6c, 0x6f, 0x6f, 0x70, 0x62, 0x61, 0x63, 0x6b,
                             0x2d, 0x73, 0x74, 0x72, 0x65, 0x61, 0x6d, 0x31};
    return &guid;
}

// --- devices ---------------------------------------------------------------------------------------------------------

static const char* dev_name(ggml_backend_dev_t dev) {
    return device_of(dev).name.c_str();
}

static const char* dev_description(ggml_backend_dev_t) {
    return "Loopback accelerator (computes on the CPU)";
}

static void dev_memory(ggml_backend_dev_t dev, size_t* free, size_t* total) {
    State& state = State::get();
    Lock lock(state.mutex);
    const Device& device = device_of(dev);
    const int64_t used = device.config.memory_reserved + static_cast<int64_t>(device.books.device_bytes);
    *total = static_cast<size_t>(device.config.memory_total);
    *free = used < device.config.memory_total ? static_cast<size_t>(device.config.memory_total - used) : 0;
}

static enum ggml_backend_dev_type dev_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

static void dev_props(ggml_backend_dev_t dev, ggml_backend_dev_props* props) {
    props->name = dev_name(dev);
    props->description = dev_description(dev);
    props->type = dev_type(dev);
    props->device_id = nullptr;
    dev_memory(dev, &props->memory_free, &props->memory_total);
    State& state = State::get();
    Lock lock(state.mutex);
    const loopback_config& config = device_of(dev).config;
    props->caps = {
        /* .async                = */ config.async != 0,
        /* .host_buffer          = */ config.host_buffer != 0,
        /* .buffer_from_host_ptr = */ false,
        /* .events               = */ config.events != 0,
    };
}

static ggml_backend_t dev_init_backend(ggml_backend_dev_t dev, const char*) {
    State& state = State::get();
    Lock lock(state.mutex);
    Device& device = device_of(dev);
    Stream* stream = state.new_stream(device);
    if (stream == nullptr) {
        return nullptr;
    }
    stream->backend = new ggml_backend{stream_guid(), stream_interface(device.config), dev, stream};
    return stream->backend;
}

static ggml_backend_buffer_type_t dev_buffer_type(ggml_backend_dev_t dev) {
    return &device_of(dev).buffer_type;
}

static ggml_backend_buffer_type_t dev_host_buffer_type(ggml_backend_dev_t dev) {
    State& state = State::get();
    Lock lock(state.mutex);
    Device& device = device_of(dev);
    return device.config.host_buffer != 0 ? &device.host_buffer_type : nullptr;
}

static bool dev_supports_op(ggml_backend_dev_t, const ggml_tensor* op) {
    switch (op->op) {
        case GGML_OP_MAP_CUSTOM1:
        case GGML_OP_MAP_CUSTOM2:
        case GGML_OP_MAP_CUSTOM3:
        case GGML_OP_CUSTOM:
            return false;  // host functions, which no device can call
        default:
            break;
    }
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return cpu != nullptr && ggml_backend_dev_supports_op(cpu, op);
}

static bool dev_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return buft == &device_of(dev).buffer_type;
}

static bool dev_offload_op(ggml_backend_dev_t, const ggml_tensor*) {
    return false;
}

static ggml_backend_event_t dev_event_new(ggml_backend_dev_t dev) {
    State& state = State::get();
    Lock lock(state.mutex);
    Event* event = state.new_event(device_of(dev));
    return event != nullptr ? new ggml_backend_event{dev, event} : nullptr;
}

static void dev_event_free(ggml_backend_dev_t, ggml_backend_event_t event) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.free_event(static_cast<Event*>(event->context));
    delete event;
}

static void dev_event_synchronize(ggml_backend_dev_t, ggml_backend_event_t event) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.synchronise(*static_cast<Event*>(event->context));
}

static const ggml_backend_device_i DEVICE = {
    /* .get_name             = */ dev_name,
    /* .get_description      = */ dev_description,
    /* .get_memory           = */ dev_memory,
    /* .get_type             = */ dev_type,
    /* .get_props            = */ dev_props,
    /* .init_backend         = */ dev_init_backend,
    /* .get_buffer_type      = */ dev_buffer_type,
    /* .get_host_buffer_type = */ dev_host_buffer_type,
    /* .buffer_from_host_ptr = */ nullptr,
    /* .supports_op          = */ dev_supports_op,
    /* .supports_buft        = */ dev_supports_buft,
    /* .offload_op           = */ dev_offload_op,
    /* .event_new            = */ dev_event_new,
    /* .event_free           = */ dev_event_free,
    /* .event_synchronize    = */ dev_event_synchronize,
};

// --- registry --------------------------------------------------------------------------------------------------------

static const char* reg_name(ggml_backend_reg_t) {
    return "Loopback";
}

static size_t reg_device_count(ggml_backend_reg_t) {
    return State::get().devices.size();
}

static ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t index) {
    return &State::get().devices.at(index)->ggml;
}

static void* reg_proc_address(ggml_backend_reg_t, const char* name) {
    static const struct {
        const char* name;
        void* function;
    } FUNCTIONS[] = {
#define LOOPBACK_FUNCTION(function) {#function, reinterpret_cast<void*>(function)}
        LOOPBACK_FUNCTION(loopback_api_version),
        LOOPBACK_FUNCTION(loopback_device_count_set),
        LOOPBACK_FUNCTION(loopback_device_count),
        LOOPBACK_FUNCTION(loopback_config_default),
        LOOPBACK_FUNCTION(loopback_config_get),
        LOOPBACK_FUNCTION(loopback_config_set),
        LOOPBACK_FUNCTION(loopback_option_set),
        LOOPBACK_FUNCTION(loopback_option_get),
        LOOPBACK_FUNCTION(loopback_reset),
        LOOPBACK_FUNCTION(loopback_books_get),
        LOOPBACK_FUNCTION(loopback_clock_get),
        LOOPBACK_FUNCTION(loopback_host_advance),
        LOOPBACK_FUNCTION(loopback_stream_get),
        LOOPBACK_FUNCTION(loopback_graph_cost),
        LOOPBACK_FUNCTION(loopback_violation_count),
        LOOPBACK_FUNCTION(loopback_violation_message),
        LOOPBACK_FUNCTION(loopback_log_size),
        LOOPBACK_FUNCTION(loopback_log_read),
        LOOPBACK_FUNCTION(loopback_mark),
        LOOPBACK_FUNCTION(loopback_pointer_kind),
        LOOPBACK_FUNCTION(loopback_pageable_buffer_type),
#undef LOOPBACK_FUNCTION
    };
    for (const auto& entry : FUNCTIONS) {
        if (strcmp(entry.name, name) == 0) {
            return entry.function;
        }
    }
    return nullptr;
}

static void connect(Device& device, ggml_backend_reg_t reg) {
    device.ggml = {DEVICE, reg, &device};
    device.buffer_type = {
        {
            /* .get_name       = */ device_buft_name,
            /* .alloc_buffer   = */ device_buft_alloc,
            /* .get_alignment  = */ buft_alignment,
            /* .get_max_size   = */ device_buft_max_size,
            /* .get_alloc_size = */ device_buft_alloc_size,
            /* .is_host        = */ buft_is_not_host,
        },
        /* .device  = */ &device.ggml,
        /* .context = */ &device,
    };
    device.host_buffer_type = {
        {
            /* .get_name       = */ host_buft_name,
            /* .alloc_buffer   = */ host_buft_alloc,
            /* .get_alignment  = */ buft_alignment,
            /* .get_max_size   = */ nullptr,
            /* .get_alloc_size = */ nullptr,
            /* .is_host        = */ buft_is_host,
        },
        /* .device  = */ &device.ggml,
        /* .context = */ &device,
    };
}

// The GGML_MAX_NAME that ggml was built with. ggml_tensor holds its name, so with another one every tensor is misread.
static size_t ggml_max_name() {
    struct ggml_context* context = ggml_init({2 * ggml_tensor_overhead(), nullptr, true});
    ggml_tensor* tensor = ggml_new_tensor_1d(context, GGML_TYPE_F32, 1);
    ggml_set_name(tensor, std::string(1024, 'x').c_str());
    const size_t size = strlen(ggml_get_name(tensor)) + 1;
    ggml_free(context);
    return size;
}

static ggml_backend_reg_t loopback_reg() {
    static ggml_backend_reg reg = {
        /* .api_version = */ GGML_BACKEND_API_VERSION,
        {
            /* .get_name         = */ reg_name,
            /* .get_device_count = */ reg_device_count,
            /* .get_device       = */ reg_device,
            /* .get_proc_address = */ reg_proc_address,
        },
        /* .context = */ nullptr,
    };
    if (ggml_max_name() != GGML_MAX_NAME) {
        GGML_LOG_ERROR("loopback: built with GGML_MAX_NAME %d, ggml with %zu\n", GGML_MAX_NAME, ggml_max_name());
        return nullptr;
    }
    State& state = State::get();
    Lock lock(state.mutex);
    if (!state.registered) {
        state.device_count_wanted = loopback::environment_int("LOOPBACK_DEVICES", state.device_count_wanted);
        state.create_devices();
        for (auto& device : state.devices) {
            connect(*device, &reg);
        }
    }
    return &reg;
}

GGML_BACKEND_DL_IMPL(loopback_reg)
