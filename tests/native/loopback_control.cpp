// The control interface of loopback.h.
#include <algorithm>
#include <cstring>
#include <limits>

#include "ggml-impl.h"
#include "loopback.h"
#include "loopback_config.h"
#include "loopback_state.h"

using loopback::Device;
using loopback::State;
using loopback::Stream;
using loopback::to_seconds;

using Lock = std::lock_guard<std::mutex>;

// The devices that a device argument stands for; none when it is out of range.
static std::vector<Device*> devices_of(State& state, int index) {
    std::vector<Device*> result;
    for (auto& device : state.devices) {
        if (index == -1 || index == device->index) {
            result.push_back(device.get());
        }
    }
    return result;
}

int loopback_api_version(void) {
    return 1;
}

int loopback_device_count_set(int count) {
    State& state = State::get();
    Lock lock(state.mutex);
    if (state.registered || count < 0) {
        return -1;
    }
    state.device_count_wanted = count;
    return 0;
}

int loopback_device_count(void) {
    State& state = State::get();
    Lock lock(state.mutex);
    return static_cast<int>(state.devices.size());
}

void loopback_config_default(loopback_config* config) {
    *config = loopback::default_config();
}

int loopback_config_get(int device, loopback_config* config) {
    State& state = State::get();
    Lock lock(state.mutex);
    const auto devices = devices_of(state, device);
    if (devices.empty()) {
        return -1;
    }
    *config = devices.front()->config;
    return 0;
}

int loopback_config_set(int device, const loopback_config* config) {
    State& state = State::get();
    Lock lock(state.mutex);
    const auto devices = devices_of(state, device);
    for (Device* each : devices) {
        state.configure(*each, *config);
    }
    return devices.empty() ? -1 : 0;
}

int loopback_option_set(int device, const char* name, double value) {
    State& state = State::get();
    Lock lock(state.mutex);
    const auto devices = devices_of(state, device);
    for (Device* each : devices) {
        loopback_config config = each->config;
        if (!loopback::set_option(config, name, value)) {
            return -1;
        }
        each->config = config;
        // "The nth from now on" starts with the option that asks for it.
        if (strcmp(name, "refuse_device_alloc") == 0) {
            each->device_alloc_ordinal = 0;
        } else if (strcmp(name, "refuse_host_alloc") == 0) {
            each->host_alloc_ordinal = 0;
        } else if (strcmp(name, "refuse_event") == 0) {
            each->event_ordinal = 0;
        } else if (strcmp(name, "throw_at_graph") == 0) {
            each->graph_ordinal = 0;
        }
    }
    return devices.empty() ? -1 : 0;
}

double loopback_option_get(int device, const char* name) {
    State& state = State::get();
    Lock lock(state.mutex);
    const auto devices = devices_of(state, device);
    double value = std::numeric_limits<double>::quiet_NaN();
    if (!devices.empty()) {
        loopback::get_option(devices.front()->config, name, value);
    }
    return value;
}

void loopback_reset(void) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.reset();
}

int loopback_books_get(int device, loopback_books* books) {
    State& state = State::get();
    Lock lock(state.mutex);
    const auto devices = devices_of(state, device);
    *books = loopback_books{};
    for (const Device* each : devices) {
        const loopback_books& other = each->books;
        for (uint64_t loopback_books::*field : {
                 &loopback_books::upload_pinned_bytes,
                 &loopback_books::upload_pinned_copies,
                 &loopback_books::upload_pageable_bytes,
                 &loopback_books::upload_pageable_copies,
                 &loopback_books::weight_upload_pinned_bytes,
                 &loopback_books::weight_upload_pinned_copies,
                 &loopback_books::weight_upload_pageable_bytes,
                 &loopback_books::weight_upload_pageable_copies,
                 &loopback_books::download_pinned_bytes,
                 &loopback_books::download_pinned_copies,
                 &loopback_books::download_pageable_bytes,
                 &loopback_books::download_pageable_copies,
                 &loopback_books::device_copy_bytes,
                 &loopback_books::device_copies,
                 &loopback_books::peer_copy_bytes,
                 &loopback_books::peer_copies,
                 &loopback_books::blocking_copies,
                 &loopback_books::graphs,
                 &loopback_books::same_graphs,
                 &loopback_books::ops,
                 &loopback_books::device_bytes,
                 &loopback_books::device_bytes_peak,
                 &loopback_books::device_allocs,
                 &loopback_books::device_frees,
                 &loopback_books::device_refusals,
                 &loopback_books::host_bytes,
                 &loopback_books::host_bytes_peak,
                 &loopback_books::host_allocs,
                 &loopback_books::host_frees,
                 &loopback_books::host_refusals,
                 &loopback_books::streams_live,
                 &loopback_books::streams_created,
                 &loopback_books::streams_refused,
                 &loopback_books::events_live,
                 &loopback_books::events_created,
                 &loopback_books::events_refused,
                 &loopback_books::event_waits,
                 &loopback_books::unrecorded_waits,
                 &loopback_books::violations,
             }) {
            books->*field += other.*field;
        }
        books->flops += other.flops;
    }
    return devices.empty() ? -1 : 0;
}

int loopback_clock_get(int device, loopback_clock* clock) {
    State& state = State::get();
    Lock lock(state.mutex);
    const auto devices = devices_of(state, device);
    *clock = loopback_clock{};
    clock->host_seconds = to_seconds(state.host_time);
    clock->first_compute = -1;
    for (const Device* each : devices) {
        clock->device_seconds = std::max(clock->device_seconds, to_seconds(each->last_end));
        clock->upload_busy += to_seconds(each->upload_engine.busy());
        clock->download_busy += to_seconds(each->download_engine.busy());
        clock->compute_busy += to_seconds(each->compute_engine.busy());
        clock->host_wait += to_seconds(each->host_wait);
        clock->upload_hidden += to_seconds(each->upload_hidden);
        const double first = to_seconds(each->first_graph);
        if (each->first_graph >= 0 && (clock->first_compute < 0 || first < clock->first_compute)) {
            clock->first_compute = first;
        }
        clock->last_compute_end = std::max(clock->last_compute_end, to_seconds(each->last_graph_end));
    }
    return devices.empty() ? -1 : 0;
}

void loopback_host_advance(double seconds) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.host_time += loopback::to_time(seconds);
}

int loopback_stream_get(void* backend, loopback_stream* result) {
    State& state = State::get();
    Lock lock(state.mutex);
    for (auto& device : state.devices) {
        for (const Stream* stream : device->streams) {
            if (stream->backend == backend) {
                *result = loopback_stream{};
                result->device = device->index;
                result->index = stream->index;
                result->pending = state.is_pending(*stream) ? 1 : 0;
                result->seconds = to_seconds(stream->time);
                return 0;
            }
        }
    }
    return -1;
}

int loopback_graph_cost(int device, const void* graph, loopback_cost* cost) {
    State& state = State::get();
    Lock lock(state.mutex);
    const auto devices = devices_of(state, device);
    if (devices.empty() || graph == nullptr) {
        return -1;
    }
    *cost = state.graph_cost(*devices.front(), static_cast<const ggml_cgraph*>(graph));
    return 0;
}

uint64_t loopback_violation_count(int kind) {
    State& state = State::get();
    Lock lock(state.mutex);
    return kind >= 0 && kind < LOOPBACK_VIOLATION_KINDS ? state.violation_counts[kind] : 0;
}

size_t loopback_violation_message(size_t index, char* text, size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    if (index >= state.violation_messages.size()) {
        return 0;
    }
    const std::string& message = state.violation_messages[index];
    if (size > 0) {
        const size_t length = std::min(size - 1, message.size());
        memcpy(text, message.data(), length);
        text[length] = '\0';
    }
    return message.size();
}

uint64_t loopback_log_size(void) {
    State& state = State::get();
    Lock lock(state.mutex);
    return state.log.size();
}

uint64_t loopback_log_read(uint64_t first, loopback_log_entry* entries, uint64_t count) {
    State& state = State::get();
    Lock lock(state.mutex);
    if (first >= state.log.size()) {
        return 0;
    }
    const uint64_t copied = std::min<uint64_t>(count, state.log.size() - first);
    std::copy_n(state.log.begin() + static_cast<ptrdiff_t>(first), copied, entries);
    return copied;
}

void loopback_mark(int64_t value) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.add_log(LOOPBACK_LOG_MARK, nullptr, nullptr, 0, value, state.host_time, state.host_time);
}

int loopback_pointer_kind(const void* pointer) {
    State& state = State::get();
    Lock lock(state.mutex);
    if (state.is_device_address(pointer)) {
        return LOOPBACK_POINTER_DEVICE;
    }
    const loopback::Memory* memory = state.find(pointer);
    return memory != nullptr && memory->pinned ? LOOPBACK_POINTER_PINNED : LOOPBACK_POINTER_PAGEABLE;
}
