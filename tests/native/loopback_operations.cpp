// Operations of streams and of the host on memory: what they do, how long they take, and what is wrong with them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "loopback_internal.h"
#include "loopback_state.h"

namespace loopback {

static constexpr size_t MAX_MESSAGES = 256;
static constexpr size_t MAX_PRINTED = 16;

static uint64_t hash_bytes(const char* data, size_t size) {
    constexpr uint64_t PRIME = 0x9e3779b97f4a7c15;
    uint64_t lanes[4] = {1, 2, 3, 4};
    size_t i = 0;
    for (; i + 32 <= size; i += 32) {
        for (size_t lane = 0; lane < 4; lane++) {
            uint64_t word;
            memcpy(&word, data + i + 8 * lane, 8);
            lanes[lane] = (lanes[lane] ^ word) * PRIME;
            lanes[lane] ^= lanes[lane] >> 29;
        }
    }
    uint64_t hash = size;
    for (uint64_t lane : lanes) {
        hash = (hash ^ lane) * PRIME;
    }
    for (; i < size; i++) {
        hash = (hash ^ static_cast<unsigned char>(data[i])) * PRIME;
    }
    return hash;
}

static const char* label(const char* name) {
    return name[0] != '\0' ? name : "(unnamed)";
}

// --- violations ------------------------------------------------------------------------------------------------------

void State::report(Device& device, int kind, const std::string& text) {
    violation_counts[kind]++;
    violation_counts[0]++;
    device.books.violations++;
    const std::string message = device.name + ": " + text;
    if (violation_messages.size() < MAX_MESSAGES) {
        violation_messages.push_back(message);
    }
    if (violation_messages.size() <= MAX_PRINTED || device.config.strict != 0) {
        fprintf(stderr, "loopback: violation: %s\n", message.c_str());
    }
    if (device.config.strict != 0) {
        fflush(nullptr);
        abort();
    }
}

std::string State::describe(const Access& access) const {
    return format("%s on %s", access.what, agents_[access.agent].c_str());
}

void State::judge(const Operation& operation, const Memory& memory, const Verdict& verdict, bool writing,
                  uint64_t offset, uint64_t size, const char* name) {
    if (verdict.conflict == Conflict::NONE) {
        return;
    }
    const std::string who = describe(operation.access);
    const char* verb = writing ? "writes" : "reads";
    const std::string where =
        format("'%s', bytes %llu to %llu of a buffer of %zu", label(name), static_cast<unsigned long long>(offset),
               static_cast<unsigned long long>(offset + size), memory.size);
    if (verdict.conflict == Conflict::UNINITIALISED) {
        if (!memory.pinned && operation.device.config.check_uninitialised != 0) {
            report(operation.device, LOOPBACK_UNINITIALISED_READ,
                   format("%s %s %s: byte %llu was never written", who.c_str(), verb, where.c_str(),
                          static_cast<unsigned long long>(verdict.offset)));
        }
        return;
    }
    const bool early = verdict.conflict == Conflict::READ_BEFORE_WRITE_COMPLETED;
    report(operation.device, early ? LOOPBACK_READ_BEFORE_ARRIVAL : LOOPBACK_OVERWRITE_IN_USE,
           format("%s %s %s, not ordered after the %s by %s", who.c_str(), verb, where.c_str(),
                  verdict.conflict == Conflict::WRITE_WHILE_READ ? "read" : "write", describe(verdict.other).c_str()));
}

void State::read(const Operation& operation, Memory& memory, uintptr_t address, size_t size, const char* name) {
    const uint64_t offset = address - memory.base;
    const Verdict verdict = memory.accesses.read(offset, offset + size, operation.access, operation.known, host_);
    judge(operation, memory, verdict, false, offset, size, name);
}

void State::write(const Operation& operation, Memory& memory, uintptr_t address, size_t size, const char* name) {
    const uint64_t offset = address - memory.base;
    const Verdict verdict = memory.accesses.write(offset, offset + size, operation.access, operation.known, host_);
    judge(operation, memory, verdict, true, offset, size, name);
}

// --- operations ------------------------------------------------------------------------------------------------------

void State::check_health(const Device& device) {
    GGML_ASSERT(device.config.sick == 0);
}

State::Operation State::begin(Device& device, Stream* stream, const char* what) {
    check_health(device);
    if (stream == nullptr) {
        host_.set(HOST, ++ticks_[HOST]);
        return Operation{device, nullptr, Access{HOST, ticks_[HOST], what}, host_};
    }
    stream->clock.join(host_);
    stream->clock.set(stream->agent, ++ticks_[stream->agent]);
    return Operation{device, stream, Access{stream->agent, ticks_[stream->agent], what}, stream->clock};
}

void State::host_wait_until(Device& device, Time time) {
    if (time > host_time) {
        device.host_wait += time - host_time;
        host_time = time;
    }
}

Engine::Interval State::run(Device& device, Engine& engine, Stream* stream, double seconds, bool blocking) {
    const Time ready = stream != nullptr ? std::max(stream->time, host_time) : host_time;
    const Engine::Interval interval = engine.reserve(ready, to_time(seconds), host_time);
    if (&engine == &device.upload_engine) {
        device.upload_hidden += device.compute_engine.overlap(interval);
    } else if (&engine == &device.compute_engine) {
        device.upload_hidden += device.upload_engine.overlap(interval);
    }
    device.last_end = std::max(device.last_end, interval.end);
    if (stream != nullptr) {
        stream->time = interval.end;
    }
    if (blocking) {
        host_wait_until(device, interval.end);
    }
    return interval;
}

Memory* State::find(const void* pointer) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    auto next = memories_.upper_bound(address);
    if (next == memories_.begin()) {
        return nullptr;
    }
    Memory* memory = std::prev(next)->second.get();
    return address - memory->base < memory->size ? memory : nullptr;
}

// Finds the device memory of an operand. Anything else is a violation and gives nullptr.
Memory* State::operand(const Operation& operation, const void* address, size_t size, const char* role,
                       const char* name) {
    Memory* memory = find(address);
    const char* problem = nullptr;
    if (address == nullptr) {
        problem = "has no memory";
    } else if (memory == nullptr) {
        problem = is_device_address(address) ? "is in device memory that was freed" : "is in host memory";
    } else if (memory->pinned) {
        problem = "is in a host buffer";
    } else if (memory->device != &operation.device) {
        problem = "is in the memory of another device";
    } else if (!memory->contains(reinterpret_cast<uintptr_t>(address), size)) {
        problem = "extends beyond its buffer";
    }
    if (problem == nullptr) {
        return memory;
    }
    report(operation.device, LOOPBACK_WRONG_MEMORY,
           format("%s: %s '%s' %s", describe(operation.access).c_str(), role, label(name), problem));
    return nullptr;
}

void State::upload(Device& device, Stream* stream, const ggml_tensor* tensor, const void* data, size_t offset,
                   size_t size) {
    if (size == 0) {
        return;
    }
    const Operation operation = begin(device, stream, "upload");
    const uintptr_t target = address_of(tensor, offset);
    const uintptr_t origin = reinterpret_cast<uintptr_t>(data);
    Memory* to = operand(operation, reinterpret_cast<void*>(target), size, "destination", tensor->name);
    Memory* from = find(data);
    if (to == nullptr) {
        return;
    }
    if (is_device_address(data)) {
        report(device, LOOPBACK_WRONG_MEMORY,
               format("%s: the source for '%s' is device memory", describe(operation.access).c_str(), tensor->name));
        return;
    }
    if (from != nullptr && !from->contains(origin, size)) {
        from = nullptr;
    }
    const bool pinned = from != nullptr;
    if (pinned) {
        finish_overlapping(data, size, false);  // bytes that arrive here in stream order must be here now
        read(operation, *from, origin, size, tensor->name);
    }
    write(operation, *to, target, size, tensor->name);

    char* real = to->real(target);
    if (real != nullptr) {
        memcpy(real, data, size);
        if (pinned && stream != nullptr && device.config.check_sources != 0) {
            char* host = from->bytes.data() + (origin - from->base);
            pending_.push_back(Pending{&device, operation.access, true, host, size, hash_bytes(host, size), {}});
        }
    }

    const bool weights = ggml_backend_buffer_get_usage(to->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
    const bool blocking = stream == nullptr || !pinned;
    const double bandwidth = pinned ? device.config.pinned_bandwidth : device.config.pageable_bandwidth;
    const double seconds = static_cast<double>(size) / bandwidth + device.config.copy_latency;
    const Engine::Interval interval = run(device, device.upload_engine, stream, seconds, blocking);

    loopback_books& books = device.books;
    (pinned ? books.upload_pinned_bytes : books.upload_pageable_bytes) += size;
    (pinned ? books.upload_pinned_copies : books.upload_pageable_copies)++;
    if (weights) {
        (pinned ? books.weight_upload_pinned_bytes : books.weight_upload_pageable_bytes) += size;
        (pinned ? books.weight_upload_pinned_copies : books.weight_upload_pageable_copies)++;
    }
    books.blocking_copies += blocking ? 1 : 0;
    const int flags = (pinned ? LOOPBACK_FLAG_PINNED : 0) | (weights ? LOOPBACK_FLAG_WEIGHTS : 0) |
                      (blocking ? LOOPBACK_FLAG_BLOCKING : 0);
    add_log(LOOPBACK_LOG_UPLOAD, &device, stream, flags, static_cast<int64_t>(size), interval.begin, interval.end);
}

void State::download(Device& device, Stream* stream, const ggml_tensor* tensor, void* data, size_t offset,
                     size_t size) {
    if (size == 0) {
        return;
    }
    const Operation operation = begin(device, stream, "download");
    const uintptr_t origin = address_of(tensor, offset);
    const uintptr_t target = reinterpret_cast<uintptr_t>(data);
    Memory* from = operand(operation, reinterpret_cast<void*>(origin), size, "source", tensor->name);
    Memory* to = find(data);
    if (from == nullptr) {
        return;
    }
    if (is_device_address(data)) {
        report(
            device, LOOPBACK_WRONG_MEMORY,
            format("%s: the destination of '%s' is device memory", describe(operation.access).c_str(), tensor->name));
        return;
    }
    if (to != nullptr && !to->contains(target, size)) {
        to = nullptr;
    }
    const bool pinned = to != nullptr;
    read(operation, *from, origin, size, tensor->name);
    if (pinned) {
        finish_overlapping(data, size, true);
        write(operation, *to, target, size, tensor->name);
    }

    const char* real = from->real(origin);
    if (real != nullptr) {
        if (pinned && stream != nullptr && device.config.defer_downloads != 0) {
            char* host = static_cast<char*>(data);
            pending_.push_back(
                Pending{&device, operation.access, false, host, size, 0, std::vector<char>(real, real + size)});
            memset(data, 0xff, size);
        } else {
            memcpy(data, real, size);
        }
    }

    const bool blocking = stream == nullptr || !pinned;
    const double bandwidth = pinned ? device.config.pinned_bandwidth : device.config.pageable_bandwidth;
    const double seconds = static_cast<double>(size) / bandwidth + device.config.copy_latency;
    const Engine::Interval interval = run(device, device.download_engine, stream, seconds, blocking);
    if (stream != nullptr && blocking) {
        // CUDA promises that an asynchronous copy to pageable memory has completed when the call returns.
        host_.join(stream->clock);
        finish_completed();
    }

    loopback_books& books = device.books;
    (pinned ? books.download_pinned_bytes : books.download_pageable_bytes) += size;
    (pinned ? books.download_pinned_copies : books.download_pageable_copies)++;
    books.blocking_copies += blocking ? 1 : 0;
    const int flags = (pinned ? LOOPBACK_FLAG_PINNED : 0) | (blocking ? LOOPBACK_FLAG_BLOCKING : 0);
    add_log(LOOPBACK_LOG_DOWNLOAD, &device, stream, flags, static_cast<int64_t>(size), interval.begin, interval.end);
}

void State::copy(Device& device, Stream* stream, const ggml_tensor* src, const ggml_tensor* dst) {
    const size_t size = ggml_nbytes(src);
    if (size == 0) {
        return;
    }
    const Operation operation = begin(device, stream, "device copy");
    Memory* from = find(src->data);
    Memory* to = find(dst->data);
    for (const auto& [memory, tensor] : {std::make_pair(from, src), std::make_pair(to, dst)}) {
        if (memory == nullptr || memory->pinned || !memory->contains(address_of(tensor), size)) {
            report(device, LOOPBACK_WRONG_MEMORY,
                   format("%s: '%s' is not in live device memory", describe(operation.access).c_str(), tensor->name));
            return;
        }
    }
    read(operation, *from, address_of(src), size, src->name);
    write(operation, *to, address_of(dst), size, dst->name);
    char* source = from->real(address_of(src));
    char* target = to->real(address_of(dst));
    if (source != nullptr && target != nullptr) {
        memmove(target, source, size);
    }

    Device& receiver = *to->device;
    const bool peer = from->device != to->device;
    const double bytes = static_cast<double>(size);
    const double seconds = device.config.copy_latency +
                           (peer ? bytes / device.config.peer_bandwidth : 2 * bytes / device.config.memory_bandwidth);
    Engine& engine = peer ? receiver.upload_engine : receiver.compute_engine;
    const Engine::Interval interval = run(receiver, engine, stream, seconds, stream == nullptr);
    (peer ? receiver.books.peer_copy_bytes : receiver.books.device_copy_bytes) += size;
    (peer ? receiver.books.peer_copies : receiver.books.device_copies)++;
    receiver.books.blocking_copies += stream == nullptr ? 1 : 0;
    add_log(peer ? LOOPBACK_LOG_PEER_COPY : LOOPBACK_LOG_DEVICE_COPY, &receiver, stream,
            stream == nullptr ? LOOPBACK_FLAG_BLOCKING : 0, static_cast<int64_t>(size), interval.begin, interval.end);
}

void State::fill(Memory& memory, uintptr_t address, uint8_t value, size_t size) {
    Device& device = *memory.device;
    const Operation operation = begin(device, nullptr, "fill");
    if (!memory.contains(address, size)) {
        report(device, LOOPBACK_WRONG_MEMORY, "a fill extends beyond its buffer");
        return;
    }
    write(operation, memory, address, size, "buffer");
    char* real = memory.real(address);
    if (real != nullptr) {
        memset(real, value, size);
    }
    const double seconds = static_cast<double>(size) / device.config.memory_bandwidth + device.config.copy_latency;
    const Engine::Interval interval = run(device, device.compute_engine, nullptr, seconds, true);
    add_log(LOOPBACK_LOG_FILL, &device, nullptr, LOOPBACK_FLAG_BLOCKING, static_cast<int64_t>(size), interval.begin,
            interval.end);
}

void State::host_read(Memory& memory, const void* pointer, size_t size) {
    finish_completed();
    read(begin(*memory.device, nullptr, "use"), memory, reinterpret_cast<uintptr_t>(pointer), size, "host buffer");
}

void State::host_write(Memory& memory, const void* pointer, size_t size) {
    finish_overlapping(pointer, size, true);
    write(begin(*memory.device, nullptr, "use"), memory, reinterpret_cast<uintptr_t>(pointer), size, "host buffer");
}

// --- copies that the host has not waited for -------------------------------------------------------------------------

void State::finish(Pending& pending) {
    if (!pending.is_upload) {
        memcpy(pending.host, pending.data.data(), pending.size);
    } else if (hash_bytes(pending.host, pending.size) != pending.hash) {
        report(*pending.device, LOOPBACK_SOURCE_CHANGED,
               format("the source of an %s of %zu bytes changed before it had completed",
                      describe(pending.access).c_str(), pending.size));
    }
}

void State::finish_completed() {
    auto completed = std::stable_partition(pending_.begin(), pending_.end(),
                                           [&](const Pending& pending) { return !host_.covers(pending.access); });
    std::for_each(completed, pending_.end(), [&](Pending& pending) { finish(pending); });
    pending_.erase(completed, pending_.end());
}

void State::finish_overlapping(const void* pointer, size_t size, bool uploads) {
    const char* begin = static_cast<const char*>(pointer);
    auto overlapping = std::stable_partition(pending_.begin(), pending_.end(), [&](const Pending& pending) {
        return (pending.is_upload && !uploads) || pending.host + pending.size <= begin || begin + size <= pending.host;
    });
    std::for_each(overlapping, pending_.end(), [&](Pending& pending) { finish(pending); });
    pending_.erase(overlapping, pending_.end());
}

}  // namespace loopback
