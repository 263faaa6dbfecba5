// The loopback accelerator as ggml sees it: registry and devices.
#include <cstring>

#include "ggml-impl.h"
#include "loopback_config.h"
#include "loopback_interface.h"

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
    State::check_health(device);
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
    if (strncmp(name, "sdcpp_memory", strlen("sdcpp_memory")) == 0) {
        State& state = State::get();
        Lock lock(state.mutex);
        // Of models without bytes nothing is to be faulted in.
        const loopback_config& config = state.devices.front()->config;
        if (config.host_lock == 0 || config.dry != 0) {
            return nullptr;
        }
        return strcmp(name, "sdcpp_memory_lock") == 0 ? reinterpret_cast<void*>(lock_memory)
                                                      : reinterpret_cast<void*>(unlock_memory);
    }
    // The CPU computes the graphs, with its kernels.
    static const bool kernels = true;
    return strcmp(name, "sdcpp_kernels") == 0 ? const_cast<bool*>(&kernels) : nullptr;
}

static void connect(Device& device, ggml_backend_reg_t reg) {
    device.ggml = {DEVICE, reg, &device};
    device.buffer_type = {
        DEVICE_BUFFER_TYPE,
        /* .device  = */ &device.ggml,
        /* .context = */ &device,
    };
    device.host_buffer_type = {
        HOST_BUFFER_TYPE,
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
