// Control interface of the loopback accelerator, a ggml backend module that behaves like a discrete GPU and computes
// on the CPU. The functions are exported by the module and are also returned by ggml_backend_reg_get_proc_address().
//
// Memory. The address of a device tensor cannot be used by host code: doing so is a segmentation fault. The bytes lie
// elsewhere, and graphs are run on copies of their tensors that point there. "Pinned" is memory of Loopback_Host
// buffers, "pageable" all other host memory.
//
// Order. Each ggml_backend_t is a stream. What is given to a stream runs after what was given to it before, and after
// everything that the host had waited for by then. Between streams only events and the host's waits make an order.
// Blocking copies (ggml_backend_tensor_set and the like) are the host's own: as on CUDA they wait for no stream. Work
// is really done when it is given to a stream; whether its order was assured is checked by these rules, independently
// of any timing, for every byte of device memory and of host buffers. All threads of the host count as one.
// Use of a pageable source is over when the call returns, a pageable destination has its bytes then, but only a wait
// assures that a device has received what was uploaded.
//
// Time. The virtual clock knows the host, the streams, and for each device an engine for uploads, one for downloads and
// one for graphs, copies inside the device and fills. An operation starts when the host has given it, its stream is
// free and the first gap in its engine's time is long enough. The host's time advances only by blocking copies, by
// copies from or to pageable memory, by waits, by freeing device memory, and by loopback_host_advance().
//
// Everything between the two "cdef" lines is plain C without preprocessor lines, so that cffi can read it as it is.
// A device argument is an index; -1 means every device when setting and the sum over all devices when reading.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)
// cdef begin

// Behaviour of one device; each field can also be given to the process as LOOPBACK_<FIELD IN CAPITALS>.
typedef struct loopback_config {
    int64_t memory_total;               // device memory in bytes
    int64_t memory_reserved;            // device memory in bytes that other processes hold
    int64_t max_buffer_size;            // largest device buffer in bytes, 0: no limit
    int64_t host_memory_total;          // bytes of host buffers that will be granted, -1: no limit
    int64_t quantized_row_padding;      // elements to which quantised rows are padded in allocations, 0: no padding
    int64_t refuse_device_alloc;        // refuse the nth device allocation from now on, 0: none
    int64_t refuse_device_alloc_count;  // how many allocations in a row that refuses, -1: all that follow
    int64_t refuse_host_alloc;          // refuse the nth host buffer allocation from now on, 0: none
    int64_t refuse_host_alloc_count;    // how many allocations in a row that refuses, -1: all that follow
    int64_t refuse_event;               // refuse the nth event from now on, 0: none
    int64_t refuse_event_count;         // how many events in a row that refuses, -1: all that follow
    int64_t throw_at_graph;             // throw where the nth graph from now on is to be computed, 0: nowhere
    int64_t sick;                       // 1: whatever the device is asked fails a check, as after an error of CUDA's
    int64_t max_streams;                // streams that may be alive at once, 0: no limit
    int64_t host_buffer;                // 1: the device has a host buffer type
    int64_t host_fallback;              // 1: a refused host buffer is silently an ordinary CPU buffer, 0: it is NULL
    int64_t host_lock;                  // 1: it locks memory that others took, of which the first device decides
    int64_t lock_pages;                 // 1: pages of host buffers are really locked, with mlock(), which takes its time
    int64_t async;                      // 1: streams offer asynchronous copies and graphs
    int64_t events;                     // 1: streams offer events
    int64_t strict;                     // 1: a violation ends the process, 0: it is only recorded
    int64_t dry;                        // 1: device memory has no bytes and nothing is computed
    int64_t poison;               // 1: new device memory is filled with 0xff, which is not a number in any float type
    int64_t check_uninitialised;  // 1: reading device memory that was never written is a violation
    int64_t check_sources;        // 1: changing a pinned source before its copy has completed is a violation
    int64_t defer_downloads;      // 1: a pinned destination receives its bytes only when the host has waited for them
    int64_t free_synchronises;    // 1: freeing device memory waits for the whole device, as on CUDA
    int64_t log_operations;       // 1: copies, graphs and waits are logged too, not only allocations and marks
    int64_t threads;              // CPU threads for graphs, 0: one for each hardware thread
    double pinned_bandwidth;      // bytes per second between host buffers and the device
    double pageable_bandwidth;    // bytes per second between other host memory and the device
    double peer_bandwidth;        // bytes per second between two devices
    double memory_bandwidth;      // bytes per second of device memory, for operations without a flop count
    double flop_rate;             // floating point operations per second
    double copy_latency;          // seconds added to each copy
    double graph_latency;         // seconds added to each graph
    double op_latency;            // seconds added to each operation of a graph
    double alloc_latency;         // seconds that allocating or freeing device memory takes on the host
} loopback_config;

// What one device has done since the last loopback_reset(); "current" and "live" fields are not reset.
typedef struct loopback_books {
    uint64_t upload_pinned_bytes;            // host to device, source in a host buffer
    uint64_t upload_pinned_copies;           // number of those
    uint64_t upload_pageable_bytes;          // host to device, source elsewhere
    uint64_t upload_pageable_copies;         // number of those
    uint64_t weight_upload_pinned_bytes;     // the pinned part whose destination buffer is used for weights
    uint64_t weight_upload_pinned_copies;    // number of those
    uint64_t weight_upload_pageable_bytes;   // the pageable part whose destination buffer is used for weights
    uint64_t weight_upload_pageable_copies;  // number of those
    uint64_t download_pinned_bytes;          // device to host, destination in a host buffer
    uint64_t download_pinned_copies;         // number of those
    uint64_t download_pageable_bytes;        // device to host, destination elsewhere
    uint64_t download_pageable_copies;       // number of those
    uint64_t device_copy_bytes;              // inside the device
    uint64_t device_copies;                  // number of those
    uint64_t peer_copy_bytes;                // from another loopback device to this one
    uint64_t peer_copies;                    // number of those
    uint64_t blocking_copies;                // copies of any kind that the host waited for
    uint64_t graphs;                         // graphs computed
    uint64_t same_graphs;                    // of those, graphs that were said to be the last ones
    uint64_t ops;                            // operations computed, views not counted
    double flops;                            // floating point operations computed
    uint64_t device_bytes;                   // current device memory
    uint64_t device_bytes_peak;              // highest device memory
    uint64_t device_allocs;                  // device buffers allocated
    uint64_t device_frees;                   // device buffers freed
    uint64_t device_refusals;                // device allocations refused
    uint64_t host_bytes;                     // current host buffer memory
    uint64_t host_bytes_peak;                // highest host buffer memory
    uint64_t host_allocs;                    // host buffers allocated
    uint64_t host_frees;                     // host buffers freed
    uint64_t host_refusals;                  // host buffers refused, silently or not
    uint64_t streams_live;                   // streams alive now
    uint64_t streams_created;                // streams created
    uint64_t streams_refused;                // streams refused
    uint64_t events_live;                    // events alive now
    uint64_t events_created;                 // events created
    uint64_t events_refused;                 // events refused
    uint64_t event_waits;                    // waits of streams and of the host for an event
    uint64_t unrecorded_waits;               // waits for an event that was never recorded, which return at once
    uint64_t violations;                     // violations found on this device
} loopback_books;

// The virtual clock, in seconds since the last loopback_reset().
typedef struct loopback_clock {
    double host_seconds;      // time of the host
    double device_seconds;    // time at which the last operation given to the device ends
    double upload_busy;       // seconds that the host-to-device copy engine was busy
    double download_busy;     // seconds that the device-to-host copy engine was busy
    double compute_busy;      // seconds that the compute engine was busy
    double host_wait;         // seconds that the host waited in blocking copies, synchronisations and frees
    double upload_hidden;     // seconds in which the upload and the compute engine were busy at once
    double first_compute;     // time at which the first graph started, negative: none yet
    double last_compute_end;  // time at which the last graph ended
} loopback_clock;

// One stream, that is one backend instance.
typedef struct loopback_stream {
    int32_t device;   // index of its device
    int32_t index;    // number of the stream on its device, counted from 0
    int32_t pending;  // 1: it has work that the host has not waited for
    int32_t unused;
    double seconds;  // time at which its last operation ends
} loopback_stream;

enum {
    LOOPBACK_READ_BEFORE_ARRIVAL = 1,  // read of memory whose last write is not ordered before the read
    LOOPBACK_OVERWRITE_IN_USE = 2,     // write to memory with a read or a write that is not ordered before
    LOOPBACK_FREE_IN_USE = 3,          // free of memory with an operation that the host has not waited for
    LOOPBACK_UNINITIALISED_READ = 4,   // read of device memory that was never written
    LOOPBACK_WRONG_MEMORY = 5,         // operand that is not in live memory of the device
    LOOPBACK_SOURCE_CHANGED = 6,       // pinned source changed before its copy completed
    LOOPBACK_WRONG_EVENT = 7,          // event recorded on a stream of another device
    LOOPBACK_WRONG_GRAPH = 8,          // graph that is said to be the stream's last one of that first node, and is not
    LOOPBACK_VIOLATION_KINDS = 9
};

enum {
    LOOPBACK_LOG_DEVICE_ALLOC = 1,
    LOOPBACK_LOG_DEVICE_FREE = 2,
    LOOPBACK_LOG_HOST_ALLOC = 3,
    LOOPBACK_LOG_HOST_FREE = 4,
    LOOPBACK_LOG_MARK = 5,
    LOOPBACK_LOG_UPLOAD = 6,
    LOOPBACK_LOG_DOWNLOAD = 7,
    LOOPBACK_LOG_DEVICE_COPY = 8,
    LOOPBACK_LOG_PEER_COPY = 9,
    LOOPBACK_LOG_FILL = 10,
    LOOPBACK_LOG_GRAPH = 11,
    LOOPBACK_LOG_EVENT_RECORD = 12,
    LOOPBACK_LOG_EVENT_WAIT = 13,
    LOOPBACK_LOG_SYNCHRONISE = 14
};

enum {
    LOOPBACK_FLAG_PINNED = 1,    // the host side is in a host buffer
    LOOPBACK_FLAG_WEIGHTS = 2,   // the destination buffer is used for weights
    LOOPBACK_FLAG_BLOCKING = 4,  // the host waited for it
    LOOPBACK_FLAG_REFUSED = 8    // the allocation was refused
};

// One line of the log; its number is its position.
typedef struct loopback_log_entry {
    int32_t kind;    // LOOPBACK_LOG_...
    int32_t device;  // index of the device, -1: none
    int32_t stream;  // index of the stream, -1: the host
    int32_t flags;   // LOOPBACK_FLAG_...
    int64_t value;   // bytes, the number of operations of a graph, or the value of a mark
    double begin;    // virtual time at which it started
    double end;      // virtual time at which it ended
} loopback_log_entry;

// Work in one graph, as the virtual clock counts it.
typedef struct loopback_cost {
    double flops;    // floating point operations of the operations that have a count
    double bytes;    // bytes read and written by the others
    double seconds;  // time on the given device, with its latencies
    int64_t ops;     // operations, views not counted
} loopback_cost;

enum { LOOPBACK_POINTER_PAGEABLE = 0, LOOPBACK_POINTER_PINNED = 1, LOOPBACK_POINTER_DEVICE = 2 };

// Returns the version of this interface.
int loopback_api_version(void);
// Sets how many devices the module has, before it is loaded as a backend; returns 0, or -1 when it is too late.
int loopback_device_count_set(int count);
// Returns how many devices the module has.
int loopback_device_count(void);

// Fills in the configuration that devices have when the environment says nothing.
void loopback_config_default(loopback_config* config);
// Reads the configuration of a device; returns 0, or -1 for an unknown device.
int loopback_config_get(int device, loopback_config* config);
// Replaces the configuration and starts counting allocations and events to refuse; returns 0, or -1.
int loopback_config_set(int device, const loopback_config* config);
// Sets one field of the configuration by its name; returns 0, or -1 for an unknown device or name.
int loopback_option_set(int device, const char* name, double value);
// Reads one field of the configuration by its name; not a number for an unknown device or name.
double loopback_option_get(int device, const char* name);

// Starts books, log, violations and virtual clock anew; memory, streams and events stay.
void loopback_reset(void);
// Reads the books of a device; returns 0, or -1 for an unknown device.
int loopback_books_get(int device, loopback_books* books);
// Reads the virtual clock of a device; -1: busy seconds are sums, times are the latest; returns 0, or -1.
int loopback_clock_get(int device, loopback_clock* clock);
// Advances the virtual clock of the host, as work on the host would.
void loopback_host_advance(double seconds);
// Describes the stream behind a ggml_backend_t; returns 0, or -1 when it is not a loopback stream.
int loopback_stream_get(void* backend, loopback_stream* stream);
// Computes the cost of a ggml_cgraph on a device without running it; returns 0, or -1.
int loopback_graph_cost(int device, const void* graph, loopback_cost* cost);

// Returns how many violations of a kind were found, 0: of all kinds.
uint64_t loopback_violation_count(int kind);
// Copies the text of a violation, counted from 0; returns its length, or 0 when there is none.
size_t loopback_violation_message(size_t index, char* text, size_t size);

// Returns how many lines the log has.
uint64_t loopback_log_size(void);
// Copies lines of the log and returns how many were copied.
uint64_t loopback_log_read(uint64_t first, loopback_log_entry* entries, uint64_t count);
// Writes a line of kind LOOPBACK_LOG_MARK to the log.
void loopback_mark(int64_t value);

// Says what a pointer points to: LOOPBACK_POINTER_...
int loopback_pointer_kind(const void* pointer);
// Returns a ggml_backend_buffer_type_t of pageable host memory whose untouched pages cost nothing.
void* loopback_pageable_buffer_type(void);

// cdef end
#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
