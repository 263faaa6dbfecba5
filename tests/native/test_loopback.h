// What the self-test of the loopback accelerator shares: the control interface, checks, and owners of ggml's objects.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "loopback.h"

// --- the control interface, through the registry ---------------------------------------------------------------------

inline ggml_backend_reg_t loopback_registry = nullptr;

#define FUNCTION(name)                                                                                      \
    template <typename... Arguments>                                                                        \
    inline auto call_##name(Arguments... arguments) {                                                       \
        static auto function =                                                                              \
            reinterpret_cast<decltype(&name)>(ggml_backend_reg_get_proc_address(loopback_registry, #name)); \
        return function(arguments...);                                                                      \
    }
FUNCTION(loopback_api_version)
FUNCTION(loopback_device_count)
FUNCTION(loopback_device_count_set)
FUNCTION(loopback_config_default)
FUNCTION(loopback_config_get)
FUNCTION(loopback_config_set)
FUNCTION(loopback_option_set)
FUNCTION(loopback_option_get)
FUNCTION(loopback_reset)
FUNCTION(loopback_books_get)
FUNCTION(loopback_clock_get)
FUNCTION(loopback_host_advance)
FUNCTION(loopback_stream_get)
FUNCTION(loopback_graph_cost)
FUNCTION(loopback_violation_count)
FUNCTION(loopback_violation_message)
FUNCTION(loopback_log_size)
FUNCTION(loopback_log_read)
FUNCTION(loopback_mark)
FUNCTION(loopback_pointer_kind)
FUNCTION(loopback_pageable_buffer_type)
#undef FUNCTION

// --- checks ----------------------------------------------------------------------------------------------------------

inline int failures = 0;

inline void fail(const char* file, int line, const std::string& text) {
    failures++;
    fprintf(stderr, "%s:%d: %s\n", file, line, text.c_str());
}

#define CHECK(condition)                          \
    do {                                          \
        if (!(condition)) {                       \
            fail(__FILE__, __LINE__, #condition); \
        }                                         \
    } while (0)

template <typename A, typename B>
inline void check_equal(const char* file, int line, const char* text, const A& a, const B& b) {
    if (!(a == static_cast<A>(b))) {
        fail(file, line, std::string(text) + ": " + std::to_string(a) + " is not " + std::to_string(b));
    }
}

#define CHECK_EQUAL(a, b) check_equal(__FILE__, __LINE__, #a, a, b)

inline uint64_t violations(int kind = 0) {
    return call_loopback_violation_count(kind);
}

inline void expect_violations(const char* file, int line, int kind, uint64_t count) {
    if (violations(kind) != count || violations() != count) {
        fail(file, line,
             "expected " + std::to_string(count) + " violations of kind " + std::to_string(kind) + ", found " +
                 std::to_string(violations(kind)) + " of it and " + std::to_string(violations()) + " in all");
    }
}

#define EXPECT_VIOLATIONS(kind, count) expect_violations(__FILE__, __LINE__, kind, count)
#define EXPECT_CLEAN() expect_violations(__FILE__, __LINE__, 0, 0)

inline loopback_books books(int device = 0) {
    loopback_books result;
    call_loopback_books_get(device, &result);
    return result;
}

inline loopback_clock the_clock(int device = 0) {
    loopback_clock result;
    call_loopback_clock_get(device, &result);
    return result;
}

inline void set(const char* name, double value, int device = -1) {
    if (call_loopback_option_set(device, name, value) != 0) {
        fail(__FILE__, __LINE__, std::string("no option ") + name);
    }
}

// Runs a function in a child process and returns the signal that ended it, 0 when it returned.
inline int signal_of(const std::function<void()>& function) {
    fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        if (freopen("/dev/null", "w", stderr) == nullptr) {
            _exit(1);
        }
        function();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

// --- owners ----------------------------------------------------------------------------------------------------------

struct Release {
    void operator()(ggml_context* context) const { ggml_free(context); }
    void operator()(ggml_backend* backend) const { ggml_backend_free(backend); }
    void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
    void operator()(ggml_backend_event* event) const { ggml_backend_event_free(event); }
    void operator()(ggml_gallocr* allocator) const { ggml_gallocr_free(allocator); }
};

using ContextPtr = std::unique_ptr<ggml_context, Release>;
using BackendPtr = std::unique_ptr<ggml_backend, Release>;
using BufferPtr = std::unique_ptr<ggml_backend_buffer, Release>;
using EventPtr = std::unique_ptr<ggml_backend_event, Release>;
using AllocatorPtr = std::unique_ptr<ggml_gallocr, Release>;

inline ContextPtr new_context(size_t tensors = 64, size_t nodes = 256) {
    const size_t size = tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(nodes, false) + 4096;
    return ContextPtr(ggml_init({size, nullptr, true}));
}

inline ggml_backend_dev_t device(int index = 0) {
    return ggml_backend_reg_dev_get(loopback_registry, static_cast<size_t>(index));
}

inline BackendPtr new_stream(int index = 0) {
    return BackendPtr(ggml_backend_dev_init(device(index), nullptr));
}

inline BackendPtr new_cpu(int threads) {
    BackendPtr cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu.get())), "ggml_backend_set_n_threads"));
    set_threads(cpu.get(), threads);
    return cpu;
}

inline ggml_backend_buffer_type_t device_type(int index = 0) {
    return ggml_backend_dev_buffer_type(device(index));
}

inline ggml_backend_buffer_type_t host_type(int index = 0) {
    return ggml_backend_dev_host_buffer_type(device(index));
}

inline BufferPtr allocate(ggml_context* context, ggml_backend_buffer_type_t type) {
    return BufferPtr(ggml_backend_alloc_ctx_tensors_from_buft(context, type));
}

// One F32 vector in a buffer of its own.
struct Vector {
    Vector(ggml_backend_buffer_type_t type, int64_t count) : context(new_context(2, 1)) {
        tensor = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, count);
        buffer = allocate(context.get(), type);
    }
    size_t bytes() const { return ggml_nbytes(tensor); }
    float* floats() const { return static_cast<float*>(tensor->data); }

    ContextPtr context;
    ggml_tensor* tensor;
    BufferPtr buffer;
};

// A graph that computes `result = a + b` of vectors that are already allocated.
struct Sum {
    Sum(ggml_tensor* a, ggml_tensor* b, ggml_tensor* result) : context(new_context(4, 4)) {
        ggml_tensor* sum = ggml_add(context.get(), a, b);
        ggml_backend_tensor_alloc(result->buffer, sum, result->data);
        graph = ggml_new_graph_custom(context.get(), 4, false);
        ggml_build_forward_expand(graph, sum);
    }
    ContextPtr context;
    ggml_cgraph* graph;
};

inline std::vector<float> random_floats(size_t count, uint32_t seed) {
    std::vector<float> values(count);
    for (float& value : values) {
        seed = seed * 1664525u + 1013904223u;
        value = static_cast<float>(seed >> 8) / static_cast<float>(1 << 24) * 2.0f - 1.0f;
    }
    return values;
}

inline void fill_random(ggml_tensor* tensor, uint32_t seed) {
    const std::vector<float> values = random_floats(static_cast<size_t>(ggml_nelements(tensor)), seed);
    if (tensor->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
        return;
    }
    std::vector<char> converted(ggml_nbytes(tensor));
    ggml_quantize_chunk(tensor->type, values.data(), converted.data(), 0, ggml_nrows(tensor), tensor->ne[0], nullptr);
    ggml_backend_tensor_set(tensor, converted.data(), 0, converted.size());
}

inline std::vector<char> bytes_of(const ggml_tensor* tensor) {
    std::vector<char> bytes(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
    return bytes;
}

// A weight that is uploaded on one stream and used on another.
struct TwoStreams {
    TwoStreams()
        : host(host_type(), 1024),
          weight(device_type(), 1024),
          input(device_type(), 1024),
          output(device_type(), 1024),
          copy(new_stream()),
          compute(new_stream()),
          arrived(ggml_backend_event_new(device())),
          used(ggml_backend_event_new(device())),
          sum(weight.tensor, input.tensor, output.tensor) {
        fill_random(host.tensor, 7);
        fill_random(input.tensor, 8);
    }
    void upload() { ggml_backend_tensor_set_async(copy.get(), weight.tensor, host.floats(), 0, 4096); }
    void use() { ggml_backend_graph_compute_async(compute.get(), sum.graph); }
    void finish() {
        ggml_backend_synchronize(copy.get());
        ggml_backend_synchronize(compute.get());
    }
    ~TwoStreams() { finish(); }

    Vector host, weight, input, output;
    BackendPtr copy, compute;
    EventPtr arrived, used;
    Sum sum;
};

// Numbers that are exact in binary: a mebibyte takes 1/1024 s pinned, 1/256 s pageable.
inline void set_clock(double copy_latency = 0) {
    set("pinned_bandwidth", 1073741824.0);
    set("pageable_bandwidth", 268435456.0);
    set("peer_bandwidth", 536870912.0);
    set("memory_bandwidth", 4294967296.0);
    set("flop_rate", 1073741824.0);
    set("copy_latency", copy_latency);
    set("graph_latency", 0);
    set("op_latency", 0);
    call_loopback_reset();
}
