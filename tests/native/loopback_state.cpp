#include "loopback_state.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "ggml-impl.h"
#include "loopback_config.h"
#include "loopback_internal.h"

namespace loopback {

static bool refused(int64_t ordinal, int64_t first, int64_t count) {
    return first > 0 && ordinal >= first && (count < 0 || ordinal < first + count);
}

State& State::get() {
    static State& state = *new State;
    return state;
}

State::State() : ticks_(1), agents_{"the host"} {}

void State::create_devices() {
    for (int i = 0; i < device_count_wanted; i++) {
        auto device = std::make_unique<Device>();
        device->index = i;
        device->name = "Loopback" + std::to_string(i);
        device->config = config_from_environment();
        devices.push_back(std::move(device));
    }
    registered = true;
    install_fault_handler(addresses_);
}

void State::configure(Device& device, const loopback_config& config) {
    device.config = config;
    device.device_alloc_ordinal = 0;
    device.host_alloc_ordinal = 0;
    device.event_ordinal = 0;
    device.graph_ordinal = 0;
}

void State::reset() {
    for (auto& device : devices) {
        loopback_books books{};
        books.device_bytes = books.device_bytes_peak = device->books.device_bytes;
        books.host_bytes = books.host_bytes_peak = device->books.host_bytes;
        books.streams_live = device->books.streams_live;
        books.events_live = device->books.events_live;
        device->books = books;
        device->last_end = device->host_wait = device->upload_hidden = device->last_graph_end = 0;
        device->first_graph = -1;
        device->upload_engine.reset();
        device->download_engine.reset();
        device->compute_engine.reset();
        for (Stream* stream : device->streams) {
            stream->time = 0;
        }
    }
    for (Event* event : events_) {
        event->time = 0;
    }
    host_time = 0;
    std::fill(std::begin(violation_counts), std::end(violation_counts), 0);
    violation_messages.clear();
    log.clear();
}

void State::add_log(int kind, const Device* device, const Stream* stream, int flags, int64_t value, Time begin,
                    Time end) {
    if (kind > LOOPBACK_LOG_MARK && device != nullptr && device->config.log_operations == 0) {
        return;
    }
    loopback_log_entry entry{};
    entry.kind = kind;
    entry.device = device != nullptr ? device->index : -1;
    entry.stream = stream != nullptr ? stream->index : -1;
    entry.flags = flags;
    entry.value = value;
    entry.begin = to_seconds(begin);
    entry.end = to_seconds(end);
    log.push_back(entry);
}

// --- memory ----------------------------------------------------------------------------------------------------------

Memory* State::alloc_device(Device& device, size_t size) {
    const loopback_config& config = device.config;
    loopback_books& books = device.books;
    const Time begin = host_time;
    host_time += to_time(config.alloc_latency);
    const int64_t available = config.memory_total - config.memory_reserved - static_cast<int64_t>(books.device_bytes);
    const bool no =
        refused(++device.device_alloc_ordinal, config.refuse_device_alloc, config.refuse_device_alloc_count) ||
        static_cast<int64_t>(size) > available;
    const uintptr_t base = no ? 0 : addresses_.reserve(size);
    Bytes bytes;
    if (base != 0 && config.dry == 0) {
        bytes = Bytes::allocate(size, false);
    }
    if (base == 0 || (config.dry == 0 && bytes.data() == nullptr)) {
        if (base != 0) {
            addresses_.release(base);
        }
        books.device_refusals++;
        add_log(LOOPBACK_LOG_DEVICE_ALLOC, &device, nullptr, LOOPBACK_FLAG_REFUSED, static_cast<int64_t>(size), begin,
                host_time);
        return nullptr;
    }
    if (bytes.data() != nullptr && config.poison != 0) {
        memset(bytes.data(), 0xff, size);
    }
    auto memory = std::make_unique<Memory>(&device, false, base, size);
    memory->bytes = std::move(bytes);
    Memory* result = memory.get();
    memories_[base] = std::move(memory);
    books.device_allocs++;
    books.device_bytes += size;
    books.device_bytes_peak = std::max(books.device_bytes_peak, books.device_bytes);
    add_log(LOOPBACK_LOG_DEVICE_ALLOC, &device, nullptr, 0, static_cast<int64_t>(size), begin, host_time);
    return result;
}

bool State::host_refused(Device& device, size_t size) {
    const loopback_config& config = device.config;
    return refused(++device.host_alloc_ordinal, config.refuse_host_alloc, config.refuse_host_alloc_count) ||
           (config.host_memory_total >= 0 &&
            static_cast<int64_t>(device.books.host_bytes + size) > config.host_memory_total);
}

Memory* State::alloc_host(Device& device, size_t size) {
    Bytes bytes;
    if (!host_refused(device, size)) {
        bytes = Bytes::allocate(size, device.config.dry != 0);
    }
    if (bytes.data() != nullptr && device.config.lock_pages != 0) {
        mlock(bytes.data(), size);
    }
    return add_host(device, size, std::move(bytes));
}

Memory* State::lock_host(Device& device, void* data, size_t size) {
    return add_host(device, size, host_refused(device, size) ? Bytes() : Bytes::borrow(data, size));
}

// Without bytes it is refused.
Memory* State::add_host(Device& device, size_t size, Bytes bytes) {
    loopback_books& books = device.books;
    if (bytes.data() == nullptr) {
        books.host_refusals++;
        add_log(LOOPBACK_LOG_HOST_ALLOC, &device, nullptr, LOOPBACK_FLAG_REFUSED, static_cast<int64_t>(size), host_time,
                host_time);
        return nullptr;
    }
    const uintptr_t base = reinterpret_cast<uintptr_t>(bytes.data());
    auto memory = std::make_unique<Memory>(&device, true, base, size);
    memory->bytes = std::move(bytes);
    Memory* result = memory.get();
    memories_[base] = std::move(memory);
    books.host_allocs++;
    books.host_bytes += size;
    books.host_bytes_peak = std::max(books.host_bytes_peak, books.host_bytes);
    add_log(LOOPBACK_LOG_HOST_ALLOC, &device, nullptr, 0, static_cast<int64_t>(size), host_time, host_time);
    return result;
}

void State::free(Memory* memory) {
    Device& device = *memory->device;
    loopback_books& books = device.books;
    finish_completed();
    const Verdict verdict = memory->accesses.unfinished(host_);
    if (verdict.conflict != Conflict::NONE) {
        report(
            device, LOOPBACK_FREE_IN_USE,
            format("%s of %zu bytes is freed while it is used by %s",
                   memory->pinned ? "a host buffer" : "device memory", memory->size, describe(verdict.other).c_str()));
    }
    const Time begin = host_time;
    if (memory->pinned) {
        const char* first = memory->bytes.data();
        pending_.erase(std::remove_if(pending_.begin(), pending_.end(),
                                      [&](const Pending& pending) {
                                          return pending.host >= first && pending.host < first + memory->size;
                                      }),
                       pending_.end());
        books.host_frees++;
        books.host_bytes -= memory->size;
    } else {
        if (device.config.free_synchronises != 0) {
            host_wait_until(device, device.last_end);
        }
        host_time += to_time(device.config.alloc_latency);
        addresses_.release(memory->base);
        books.device_frees++;
        books.device_bytes -= memory->size;
    }
    add_log(memory->pinned ? LOOPBACK_LOG_HOST_FREE : LOOPBACK_LOG_DEVICE_FREE, &device, nullptr, 0,
            static_cast<int64_t>(memory->size), begin, host_time);
    memories_.erase(memory->base);
}

// --- streams and events ----------------------------------------------------------------------------------------------

Stream* State::new_stream(Device& device) {
    if (device.config.max_streams > 0 && static_cast<int64_t>(device.streams.size()) >= device.config.max_streams) {
        device.books.streams_refused++;
        return nullptr;
    }
    auto stream = std::make_unique<Stream>();
    stream->device = &device;
    stream->index = device.next_stream++;
    // An agent can be used again once the host has waited for everything that it did.
    auto reusable = std::find_if(retired_agents_.begin(), retired_agents_.end(),
                                 [&](Agent agent) { return host_.at(agent) >= ticks_[agent]; });
    if (reusable != retired_agents_.end()) {
        stream->agent = *reusable;
        retired_agents_.erase(reusable);
    } else {
        stream->agent = static_cast<Agent>(ticks_.size());
        ticks_.push_back(0);
        agents_.emplace_back();
    }
    agents_[stream->agent] = format("stream %d of %s", stream->index, device.name.c_str());
    stream->clock = host_;
    stream->time = host_time;
    device.books.streams_created++;
    device.books.streams_live++;
    device.streams.push_back(stream.get());
    return stream.release();
}

void State::free_stream(Stream* stream) {
    Device& device = *stream->device;
    device.books.streams_live--;
    device.streams.erase(std::find(device.streams.begin(), device.streams.end(), stream));
    retired_agents_.push_back(stream->agent);
    if (device.streams.empty() && device.cpu != nullptr) {
        ggml_backend_free(device.cpu);
        device.cpu = nullptr;
    }
    delete stream;
}

Event* State::new_event(Device& device) {
    const loopback_config& config = device.config;
    if (config.events == 0 || refused(++device.event_ordinal, config.refuse_event, config.refuse_event_count)) {
        device.books.events_refused++;
        return nullptr;
    }
    auto event = std::make_unique<Event>();
    event->device = &device;
    device.books.events_created++;
    device.books.events_live++;
    events_.insert(event.get());
    return event.release();
}

void State::free_event(Event* event) {
    event->device->books.events_live--;
    events_.erase(event);
    delete event;
}

void State::record(Event& event, Stream& stream) {
    if (event.device != stream.device) {
        report(*stream.device, LOOPBACK_WRONG_EVENT,
               format("an event of %s is recorded on %s", event.device->name.c_str(), agents_[stream.agent].c_str()));
    }
    stream.clock.join(host_);
    event.recorded = true;
    event.clock = stream.clock;
    event.time = std::max(stream.time, host_time);
    add_log(LOOPBACK_LOG_EVENT_RECORD, stream.device, &stream, 0, 0, event.time, event.time);
}

void State::wait(Event& event, Stream& stream) {
    stream.device->books.event_waits++;
    const Time before = std::max(stream.time, host_time);
    if (event.recorded) {
        stream.clock.join(event.clock);
        stream.time = std::max(before, event.time);
    } else {
        stream.device->books.unrecorded_waits++;
    }
    add_log(LOOPBACK_LOG_EVENT_WAIT, stream.device, &stream, 0, 0, before, std::max(before, stream.time));
}

void State::synchronise(Event& event) {
    Device& device = *event.device;
    device.books.event_waits++;
    const Time before = host_time;
    if (event.recorded) {
        host_.join(event.clock);
        host_wait_until(device, event.time);
        finish_completed();
    } else {
        device.books.unrecorded_waits++;
    }
    add_log(LOOPBACK_LOG_EVENT_WAIT, &device, nullptr, LOOPBACK_FLAG_BLOCKING, 0, before, host_time);
}

void State::synchronise(Stream& stream) {
    check_health(*stream.device);
    const Time before = host_time;
    host_.join(stream.clock);
    host_wait_until(*stream.device, stream.time);
    finish_completed();
    add_log(LOOPBACK_LOG_SYNCHRONISE, stream.device, &stream, LOOPBACK_FLAG_BLOCKING, 0, before, host_time);
}

}  // namespace loopback
