// Everything the loopback accelerator knows: devices, streams, events, live memory, books, log and violations, and the
// operations on them. The ggml interface and the control interface are thin layers over it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "loopback.h"
#include "loopback_clock.h"
#include "loopback_memory.h"
#include "loopback_order.h"

namespace loopback {

struct Stream {
    Device* device = nullptr;
    int index = 0;
    Agent agent = HOST;
    VectorClock clock;  // what has completed when the next operation of the stream runs
    Time time = 0;      // at which the last operation ends
    ggml_backend_t backend = nullptr;
    std::map<const ggml_tensor*, uint64_t> graphs;  // what the last graph with this first node was
};

struct Event {
    Device* device = nullptr;
    bool recorded = false;
    VectorClock clock;
    Time time = 0;
};

struct Device {
    int index = 0;
    std::string name;
    loopback_config config;
    loopback_books books{};
    Engine upload_engine;
    Engine download_engine;
    Engine compute_engine;
    Time last_end = 0;       // of any operation
    Time host_wait = 0;      // how long the host waited for this device
    Time upload_hidden = 0;  // how long uploads and graphs ran at once
    Time first_graph = -1;
    Time last_graph_end = 0;
    int64_t device_alloc_ordinal = 0;
    int64_t host_alloc_ordinal = 0;
    int64_t event_ordinal = 0;
    int64_t graph_ordinal = 0;
    int next_stream = 0;
    std::vector<Stream*> streams;
    ggml_backend_t cpu = nullptr;  // computes the graphs; lives while the device has streams

    ggml_backend_device ggml{};
    ggml_backend_buffer_type buffer_type{};
    ggml_backend_buffer_type host_buffer_type{};
};

class State {
public:
    // The one state of the process; it is never destroyed, because buffers may be freed late during exit.
    static State& get();

    std::mutex mutex;  // held by every function of the ggml and of the control interface

    int device_count_wanted = 2;
    bool registered = false;  // the number of devices is fixed
    std::vector<std::unique_ptr<Device>> devices;

    void create_devices();
    void configure(Device& device, const loopback_config& config);
    void reset();

    // Memory. The allocations return nullptr when they are refused.
    Memory* alloc_device(Device& device, size_t size);
    Memory* alloc_host(Device& device, size_t size);
    Memory* lock_host(Device& device, void* data, size_t size);
    void free(Memory* memory);
    Memory* find(const void* pointer);
    bool is_device_address(const void* pointer) const {
        return addresses_.contains(reinterpret_cast<uintptr_t>(pointer));
    }

    // Streams and events; nullptr when they are refused.
    Stream* new_stream(Device& device);
    void free_stream(Stream* stream);
    Event* new_event(Device& device);
    void free_event(Event* event);
    void record(Event& event, Stream& stream);
    void wait(Event& event, Stream& stream);
    // Fails a check when the device was told to be sick.
    static void check_health(const Device& device);

    void synchronise(Event& event);
    void synchronise(Stream& stream);
    bool is_pending(const Stream& stream) const { return !host_.covers(stream.clock); }

    // Operations of a stream, or of the host, which waits for them, when the stream is nullptr.
    void upload(Device& device, Stream* stream, const ggml_tensor* tensor, const void* data, size_t offset,
                size_t size);
    void download(Device& device, Stream* stream, const ggml_tensor* tensor, void* data, size_t offset, size_t size);
    void copy(Device& device, Stream* stream, const ggml_tensor* src, const ggml_tensor* dst);
    void fill(Memory& memory, uintptr_t address, uint8_t value, size_t size);
    ggml_status compute(Stream& stream, const ggml_cgraph* graph);

    // The host using a host buffer through ggml.
    void host_read(Memory& memory, const void* pointer, size_t size);
    void host_write(Memory& memory, const void* pointer, size_t size);

    loopback_cost graph_cost(const Device& device, const ggml_cgraph* graph) const;

    Time host_time = 0;
    uint64_t violation_counts[LOOPBACK_VIOLATION_KINDS] = {};
    std::vector<std::string> violation_messages;
    std::vector<loopback_log_entry> log;
    void add_log(int kind, const Device* device, const Stream* stream, int flags, int64_t value, Time begin, Time end);

private:
    // A copy between a host buffer and a device that the host has not waited for. The bytes were moved at once; what is
    // left is to see whether the source is still the same, or to show the host what arrived.
    struct Pending {
        Device* device;
        Access access;
        bool is_upload;
        char* host;
        size_t size;
        uint64_t hash;
        std::vector<char> data;
    };

    // An operation while it is being given to a stream or done by the host.
    struct Operation {
        Device& device;
        Stream* stream;
        Access access;
        const VectorClock& known;
    };

    State();
    Memory* add_host(Device& device, size_t size, Bytes bytes);
    bool host_refused(Device& device, size_t size);
    Operation begin(Device& device, Stream* stream, const char* what);
    Engine::Interval run(Device& device, Engine& engine, Stream* stream, double seconds, bool blocking);
    void host_wait_until(Device& device, Time time);

    Memory* operand(const Operation& operation, const void* address, size_t size, const char* role, const char* name);
    void read(const Operation& operation, Memory& memory, uintptr_t address, size_t size, const char* name);
    void write(const Operation& operation, Memory& memory, uintptr_t address, size_t size, const char* name);
    void judge(const Operation& operation, const Memory& memory, const Verdict& verdict, bool writing, uint64_t offset,
               uint64_t size, const char* name);
    void report(Device& device, int kind, const std::string& text);
    std::string describe(const Access& access) const;

    void finish(Pending& pending);
    void finish_completed();
    void finish_overlapping(const void* pointer, size_t size, bool uploads);
    bool run_on_cpu(Device& device, std::vector<ggml_tensor*>& nodes, ggml_status& status);

    AddressSpace addresses_;
    std::map<uintptr_t, std::unique_ptr<Memory>> memories_;
    VectorClock host_;
    std::vector<uint64_t> ticks_;        // operations so far, by agent
    std::vector<std::string> agents_;    // names, by agent
    std::vector<Agent> retired_agents_;  // of streams that were freed
    std::set<Event*> events_;
    std::vector<Pending> pending_;
};

}  // namespace loopback
