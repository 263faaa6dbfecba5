#include "loopback_state.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <stdexcept>
#include <unordered_map>

#include "ggml-impl.h"
#include "loopback_config.h"

namespace loopback {

static constexpr size_t MAX_MESSAGES = 256;
static constexpr size_t MAX_PRINTED = 16;

__attribute__((format(printf, 1, 2))) static std::string format(const char* text, ...) {
    char buffer[512];
    va_list arguments;
    va_start(arguments, text);
    vsnprintf(buffer, sizeof(buffer), text, arguments);
    va_end(arguments);
    return buffer;
}

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

static bool refused(int64_t ordinal, int64_t first, int64_t count) {
    return first > 0 && ordinal >= first && (count < 0 || ordinal < first + count);
}

static uintptr_t address_of(const ggml_tensor* tensor, size_t offset = 0) {
    return reinterpret_cast<uintptr_t>(tensor->data) + offset;
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

State::Operation State::begin(Device& device, Stream* stream, const char* what) {
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

// --- graphs ----------------------------------------------------------------------------------------------------------

// The operations that the CPU backend would run too.
static bool is_run(const ggml_tensor* node) {
    return (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && !is_view_op(node);
}

loopback_cost State::graph_cost(const Device& device, const ggml_cgraph* graph) const {
    loopback_cost cost{};
    for (int i = 0; i < graph->n_nodes; i++) {
        if (is_run(graph->nodes[i])) {
            add_op(device.config, graph->nodes[i], cost);
        }
    }
    if (cost.ops > 0) {
        cost.seconds += device.config.graph_latency;
    }
    cost.seconds = to_seconds(to_time(cost.seconds));
    return cost;
}

ggml_status State::compute(Stream& stream, const ggml_cgraph* graph) {
    Device& device = *stream.device;
    const loopback_cost cost = graph_cost(device, graph);
    if (cost.ops == 0) {
        return GGML_STATUS_SUCCESS;
    }
    if (++device.graph_ordinal == device.config.throw_at_graph) {
        throw std::runtime_error("the loopback accelerator was told to throw");
    }
    const Operation operation = begin(device, &stream, "graph");

    // The CPU backend gets copies of the tensors that point to the real bytes. The caller's tensors stay as they are,
    // so that other threads may look at them meanwhile.
    std::deque<ggml_tensor> copies;
    std::unordered_map<const ggml_tensor*, ggml_tensor*> copy_of;
    copy_of.reserve(static_cast<size_t>(graph->n_nodes) * 2);
    std::vector<ggml_tensor*> nodes;
    nodes.reserve(static_cast<size_t>(cost.ops));
    bool computable = true;
    bool dry = device.config.dry != 0;

    auto real_data = [&](const ggml_tensor* tensor, const Memory* memory) -> void* {
        if (memory == nullptr) {
            memory = find(tensor->data);
        }
        if (memory != nullptr && memory->contains(address_of(tensor), ggml_nbytes(tensor))) {
            char* real = memory->real(address_of(tensor));
            dry = dry || real == nullptr;
            return real;
        }
        if (memory != nullptr || tensor->data == nullptr || is_device_address(tensor->data)) {
            computable = false;
            return nullptr;
        }
        return tensor->data;
    };
    auto copy_tensor = [&](const ggml_tensor* tensor, const Memory* memory) {
        auto [entry, is_new] = copy_of.emplace(tensor, nullptr);
        if (is_new) {
            copies.push_back(*tensor);
            ggml_tensor& copy = copies.back();
            copy.buffer = nullptr;
            copy.extra = nullptr;
            copy.view_src = nullptr;
            copy.data = real_data(tensor, memory);
            std::fill(std::begin(copy.src), std::end(copy.src), nullptr);
            entry->second = &copy;
        }
        return entry->second;
    };

    for (int i = 0; i < graph->n_nodes; i++) {
        const ggml_tensor* node = graph->nodes[i];
        if (!is_run(node)) {
            continue;
        }
        ggml_tensor* sources[GGML_MAX_SRC] = {};
        for (int j = 0; j < GGML_MAX_SRC; j++) {
            const ggml_tensor* source = node->src[j];
            if (source == nullptr) {
                continue;
            }
            Memory* memory = nullptr;
            if (reads_source(node, j) && !ggml_is_empty(source)) {
                memory = operand(operation, source->data, ggml_nbytes(source), "source of an operation,", source->name);
                if (memory != nullptr) {
                    read(operation, *memory, address_of(source), ggml_nbytes(source), source->name);
                }
                sources[j] = copy_tensor(source, memory);
            } else {
                const bool was_computable = computable;
                sources[j] = copy_tensor(source, nullptr);
                computable = was_computable;
            }
        }
        Memory* memory = operand(operation, node->data, ggml_nbytes(node), "result of an operation,", node->name);
        if (memory != nullptr) {
            write(operation, *memory, address_of(node), ggml_nbytes(node), node->name);
        }
        ggml_tensor* copy = copy_tensor(node, memory);
        std::copy(std::begin(sources), std::end(sources), std::begin(copy->src));
        nodes.push_back(copy);
    }
    if (!computable) {
        return GGML_STATUS_FAILED;
    }

    ggml_status status = GGML_STATUS_SUCCESS;
    if (!dry && !run_on_cpu(device, nodes, status)) {
        return GGML_STATUS_FAILED;
    }

    const bool blocking = device.config.async == 0;
    const Engine::Interval interval = run(device, device.compute_engine, &stream, cost.seconds, blocking);
    if (blocking) {
        host_.join(stream.clock);
        finish_completed();
    }
    if (device.first_graph < 0) {
        device.first_graph = interval.begin;
    }
    device.last_graph_end = std::max(device.last_graph_end, interval.end);
    device.books.graphs++;
    device.books.ops += static_cast<uint64_t>(cost.ops);
    device.books.flops += cost.flops;
    add_log(LOOPBACK_LOG_GRAPH, &device, &stream, blocking ? LOOPBACK_FLAG_BLOCKING : 0, cost.ops, interval.begin,
            interval.end);
    return status;
}

bool State::run_on_cpu(Device& device, std::vector<ggml_tensor*>& nodes, ggml_status& status) {
    ggml_backend_dev_t cpu_device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device.cpu == nullptr && cpu_device != nullptr) {
        device.cpu = ggml_backend_dev_init(cpu_device, nullptr);
    }
    if (device.cpu == nullptr) {
        fprintf(stderr, "loopback: no CPU backend is loaded, which would compute the graphs\n");
        return false;
    }
    auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu_device), "ggml_backend_set_n_threads"));
    if (set_threads != nullptr) {
        const int64_t threads = device.config.threads;
        set_threads(device.cpu, threads > 0 ? static_cast<int>(threads) : default_threads());
    }
    ggml_cgraph graph{};
    graph.size = graph.n_nodes = static_cast<int>(nodes.size());
    graph.nodes = nodes.data();
    status = ggml_backend_graph_compute(device.cpu, &graph);
    return true;
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

Memory* State::alloc_host(Device& device, size_t size) {
    const loopback_config& config = device.config;
    loopback_books& books = device.books;
    const bool no =
        refused(++device.host_alloc_ordinal, config.refuse_host_alloc, config.refuse_host_alloc_count) ||
        (config.host_memory_total >= 0 && static_cast<int64_t>(books.host_bytes + size) > config.host_memory_total);
    Bytes bytes;
    if (!no) {
        bytes = Bytes::allocate(size, config.dry != 0);
    }
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
    const Time before = host_time;
    host_.join(stream.clock);
    host_wait_until(*stream.device, stream.time);
    finish_completed();
    add_log(LOOPBACK_LOG_SYNCHRONISE, stream.device, &stream, LOOPBACK_FLAG_BLOCKING, 0, before, host_time);
}

}  // namespace loopback
