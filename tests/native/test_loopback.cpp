// Self-test of the loopback accelerator: drives ggml directly, as the engine does.
//
//     test_loopback [--module FILE] [--cpu DIRECTORY] [--list | NAME...]
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "loopback.h"
#include "loopback_clock.h"
#include "loopback_order.h"

// --- the control interface, through the registry ---------------------------------------------------------------------

static ggml_backend_reg_t loopback_registry = nullptr;

#define FUNCTION(name)                                                                                      \
    template <typename... Arguments>                                                                        \
    static auto call_##name(Arguments... arguments) {                                                       \
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

static int failures = 0;

static void fail(int line, const std::string& text) {
    failures++;
    fprintf(stderr, "test_loopback.cpp:%d: %s\n", line, text.c_str());
}

#define CHECK(condition)                \
    do {                                \
        if (!(condition)) {             \
            fail(__LINE__, #condition); \
        }                               \
    } while (0)

template <typename A, typename B>
static void check_equal(int line, const char* text, const A& a, const B& b) {
    if (!(a == static_cast<A>(b))) {
        fail(line, std::string(text) + ": " + std::to_string(a) + " is not " + std::to_string(b));
    }
}

#define CHECK_EQUAL(a, b) check_equal(__LINE__, #a, a, b)

static uint64_t violations(int kind = 0) {
    return call_loopback_violation_count(kind);
}

static void expect_violations(int line, int kind, uint64_t count) {
    if (violations(kind) != count || violations() != count) {
        fail(line, "expected " + std::to_string(count) + " violations of kind " + std::to_string(kind) + ", found " +
                       std::to_string(violations(kind)) + " of it and " + std::to_string(violations()) + " in all");
    }
}

#define EXPECT_VIOLATIONS(kind, count) expect_violations(__LINE__, kind, count)
#define EXPECT_CLEAN() expect_violations(__LINE__, 0, 0)

static loopback_books books(int device = 0) {
    loopback_books result;
    call_loopback_books_get(device, &result);
    return result;
}

static loopback_clock the_clock(int device = 0) {
    loopback_clock result;
    call_loopback_clock_get(device, &result);
    return result;
}

static void set(const char* name, double value, int device = -1) {
    if (call_loopback_option_set(device, name, value) != 0) {
        fail(__LINE__, std::string("no option ") + name);
    }
}

// Runs a function in a child process and returns the signal that ended it, 0 when it returned.
static int signal_of(const std::function<void()>& function) {
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

static ContextPtr new_context(size_t tensors = 64, size_t nodes = 256) {
    const size_t size = tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(nodes, false) + 4096;
    return ContextPtr(ggml_init({size, nullptr, true}));
}

static ggml_backend_dev_t device(int index = 0) {
    return ggml_backend_reg_dev_get(loopback_registry, static_cast<size_t>(index));
}

static BackendPtr new_stream(int index = 0) {
    return BackendPtr(ggml_backend_dev_init(device(index), nullptr));
}

static BackendPtr new_cpu(int threads) {
    BackendPtr cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu.get())), "ggml_backend_set_n_threads"));
    set_threads(cpu.get(), threads);
    return cpu;
}

static ggml_backend_buffer_type_t device_type(int index = 0) {
    return ggml_backend_dev_buffer_type(device(index));
}

static ggml_backend_buffer_type_t host_type(int index = 0) {
    return ggml_backend_dev_host_buffer_type(device(index));
}

static BufferPtr allocate(ggml_context* context, ggml_backend_buffer_type_t type) {
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

static std::vector<float> random_floats(size_t count, uint32_t seed) {
    std::vector<float> values(count);
    for (float& value : values) {
        seed = seed * 1664525u + 1013904223u;
        value = static_cast<float>(seed >> 8) / static_cast<float>(1 << 24) * 2.0f - 1.0f;
    }
    return values;
}

static void fill_random(ggml_tensor* tensor, uint32_t seed) {
    const std::vector<float> values = random_floats(static_cast<size_t>(ggml_nelements(tensor)), seed);
    if (tensor->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
        return;
    }
    std::vector<char> converted(ggml_nbytes(tensor));
    ggml_quantize_chunk(tensor->type, values.data(), converted.data(), 0, ggml_nrows(tensor), tensor->ne[0], nullptr);
    ggml_backend_tensor_set(tensor, converted.data(), 0, converted.size());
}

static std::vector<char> bytes_of(const ggml_tensor* tensor) {
    std::vector<char> bytes(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
    return bytes;
}

// --- devices ---------------------------------------------------------------------------------------------------------

static void test_devices() {
    CHECK_EQUAL(call_loopback_api_version(), 1);
    CHECK_EQUAL(call_loopback_device_count(), 2);
    CHECK_EQUAL(call_loopback_device_count_set(3), -1);
    for (int i = 0; i < 2; i++) {
        ggml_backend_dev_t dev = device(i);
        CHECK(ggml_backend_dev_by_name(i == 0 ? "Loopback0" : "loopback1") == dev);
        CHECK(ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_GPU);
        ggml_backend_dev_props props;
        ggml_backend_dev_get_props(dev, &props);
        CHECK(props.caps.async && props.caps.host_buffer && props.caps.events && !props.caps.buffer_from_host_ptr);
        CHECK_EQUAL(props.memory_total, size_t{12} << 30);
        CHECK_EQUAL(props.memory_free, size_t{12} << 30);
        CHECK(!ggml_backend_buft_is_host(device_type(i)));
        CHECK(ggml_backend_buft_is_host(host_type(i)));
        CHECK(strcmp(ggml_backend_buft_name(device_type(i)), ggml_backend_dev_name(dev)) == 0);
        CHECK(strcmp(ggml_backend_buft_name(host_type(i)), "Loopback_Host") == 0);
        CHECK(ggml_backend_buft_get_device(device_type(i)) == dev);
        CHECK(ggml_backend_dev_supports_buft(dev, device_type(i)));
        CHECK(!ggml_backend_dev_supports_buft(dev, device_type(1 - i)));
        CHECK(!ggml_backend_dev_supports_buft(dev, host_type(i)));
        CHECK(!ggml_backend_dev_supports_buft(dev, ggml_backend_cpu_buffer_type()));
    }
    set("memory_reserved", double(1 << 20), 0);
    Vector vector(device_type(), 1024);
    size_t free_bytes = 0;
    size_t total = 0;
    ggml_backend_dev_memory(device(), &free_bytes, &total);
    CHECK_EQUAL(total - free_bytes, (1 << 20) + ggml_backend_buffer_get_size(vector.buffer.get()));
    CHECK(!ggml_backend_buffer_is_host(vector.buffer.get()));
}

static void test_options() {
    loopback_config config;
    call_loopback_config_default(&config);
    config.copy_latency = 0.5;
    config.memory_total = 12345;
    CHECK_EQUAL(call_loopback_config_set(1, &config), 0);
    CHECK_EQUAL(call_loopback_option_get(1, "copy_latency"), 0.5);
    CHECK_EQUAL(call_loopback_option_get(1, "memory_total"), 12345.0);
    CHECK(call_loopback_option_get(0, "copy_latency") != 0.5);
    CHECK(std::isnan(call_loopback_option_get(0, "no_such_option")));
    CHECK_EQUAL(call_loopback_option_set(0, "no_such_option", 1.0), -1);
    CHECK_EQUAL(call_loopback_option_set(2, "copy_latency", 1.0), -1);
    CHECK_EQUAL(call_loopback_config_set(2, &config), -1);
    CHECK_EQUAL(call_loopback_config_get(2, &config), -1);
}

// --- copies and books ------------------------------------------------------------------------------------------------

static void test_blocking_copies() {
    Vector vector(device_type(), 1000);
    const std::vector<float> values = random_floats(1000, 1);
    ggml_backend_tensor_set(vector.tensor, values.data(), 0, 4000);
    std::vector<float> result(1000);
    ggml_backend_tensor_get(vector.tensor, result.data(), 0, 4000);
    CHECK(result == values);
    CHECK_EQUAL(books().upload_pageable_bytes, 4000);
    CHECK_EQUAL(books().upload_pageable_copies, 1);
    CHECK_EQUAL(books().download_pageable_bytes, 4000);
    CHECK_EQUAL(books().blocking_copies, 2);
    CHECK_EQUAL(books().upload_pinned_bytes, 0);

    ggml_backend_tensor_set(vector.tensor, values.data() + 7, 40, 80);
    ggml_backend_tensor_get(vector.tensor, result.data(), 40, 80);
    CHECK(memcmp(result.data(), values.data() + 7, 80) == 0);

    ggml_backend_tensor_memset(vector.tensor, 0, 400, 800);
    ggml_backend_tensor_get(vector.tensor, result.data(), 0, 4000);
    CHECK(result[99] != 0 && result[100] == 0 && result[299] == 0 && result[300] != 0);
    ggml_backend_buffer_clear(vector.buffer.get(), 0);
    ggml_backend_tensor_get(vector.tensor, result.data(), 0, 4000);
    CHECK(result == std::vector<float>(1000));
    EXPECT_CLEAN();
}

static void test_pinned_and_weights() {
    Vector host(host_type(), 1000);
    Vector target(device_type(), 1000);
    CHECK(ggml_backend_buffer_get_type(host.buffer.get()) == host_type());
    CHECK(ggml_backend_buffer_is_host(host.buffer.get()));
    fill_random(host.tensor, 2);
    CHECK_EQUAL(call_loopback_pointer_kind(host.tensor->data), LOOPBACK_POINTER_PINNED);
    CHECK_EQUAL(call_loopback_pointer_kind(target.tensor->data), LOOPBACK_POINTER_DEVICE);
    CHECK_EQUAL(call_loopback_pointer_kind(&host), LOOPBACK_POINTER_PAGEABLE);

    ggml_backend_tensor_copy(host.tensor, target.tensor);
    CHECK_EQUAL(books().upload_pinned_bytes, 4000);
    CHECK_EQUAL(books().weight_upload_pinned_bytes, 0);
    ggml_backend_buffer_set_usage(target.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_copy(host.tensor, target.tensor);
    CHECK_EQUAL(books().upload_pinned_bytes, 8000);
    CHECK_EQUAL(books().weight_upload_pinned_bytes, 4000);
    CHECK_EQUAL(books().weight_upload_pinned_copies, 1);
    const std::vector<float> values(1000);
    ggml_backend_tensor_set(target.tensor, values.data(), 0, 400);
    CHECK_EQUAL(books().weight_upload_pageable_bytes, 400);
    CHECK_EQUAL(books().weight_upload_pageable_copies, 1);

    ggml_backend_tensor_copy(target.tensor, host.tensor);
    CHECK_EQUAL(books().download_pinned_bytes, 4000);
    CHECK_EQUAL(books().download_pageable_bytes, 0);
    CHECK(host.floats()[0] == 0 && host.floats()[100] != 0);

    CHECK_EQUAL(books(1).upload_pinned_bytes, 0);
    Vector other(device_type(1), 1000);
    ggml_backend_tensor_copy(host.tensor, other.tensor);
    CHECK_EQUAL(books(1).upload_pinned_bytes, 4000);
    CHECK_EQUAL(books(-1).upload_pinned_bytes, 12000);
    EXPECT_CLEAN();
}

static void test_memory_books() {
    {
        Vector a(device_type(), 1 << 16);
        {
            Vector b(device_type(), 1 << 18);
            CHECK_EQUAL(books().device_bytes, (1 << 18) + (1 << 20));
        }
        Vector c(host_type(), 1 << 10);
        CHECK_EQUAL(books().host_bytes, 4096);
        call_loopback_reset();
        CHECK_EQUAL(books().device_bytes_peak, 1 << 18);
        CHECK_EQUAL(books().device_bytes, 1 << 18);
        CHECK_EQUAL(books().device_allocs, 0);
        call_loopback_mark(7);
        Vector d(device_type(1), 1 << 10);
    }
    CHECK_EQUAL(books().device_bytes, 0);
    CHECK_EQUAL(books().host_bytes, 0);
    CHECK_EQUAL(books().device_frees, 1);
    CHECK_EQUAL(books().host_frees, 1);
    std::vector<loopback_log_entry> log(call_loopback_log_size());
    CHECK_EQUAL(call_loopback_log_read(0, log.data(), log.size()), log.size());
    CHECK_EQUAL(log.size(), 5u);
    const int kinds[] = {LOOPBACK_LOG_MARK, LOOPBACK_LOG_DEVICE_ALLOC, LOOPBACK_LOG_DEVICE_FREE, LOOPBACK_LOG_HOST_FREE,
                         LOOPBACK_LOG_DEVICE_FREE};
    for (size_t i = 0; i < log.size(); i++) {
        CHECK_EQUAL(log[i].kind, kinds[i]);
    }
    CHECK(log[0].value == 7 && log[1].device == 1 && log[1].value == 4096);
    CHECK_EQUAL(call_loopback_log_read(4, log.data(), 10), 1u);
    CHECK_EQUAL(call_loopback_log_read(5, log.data(), 10), 0u);
}

static void test_device_copies() {
    Vector a(device_type(0), 256);
    Vector b(device_type(0), 256);
    Vector c(device_type(1), 256);
    fill_random(a.tensor, 3);
    ggml_backend_tensor_copy(a.tensor, b.tensor);
    ggml_backend_tensor_copy(b.tensor, c.tensor);
    CHECK(bytes_of(a.tensor) == bytes_of(c.tensor));
    CHECK_EQUAL(books(0).device_copy_bytes, 1024);
    CHECK_EQUAL(books(1).peer_copy_bytes, 1024);

    BackendPtr s0 = new_stream(0);
    BackendPtr s1 = new_stream(0);
    BackendPtr other = new_stream(1);
    Sum sum(a.tensor, a.tensor, b.tensor);
    ggml_backend_graph_compute_async(s0.get(), sum.graph);
    ggml_backend_tensor_copy_async(s0.get(), s1.get(), b.tensor, a.tensor);  // s1 now waits for it
    Sum twice(a.tensor, a.tensor, b.tensor);
    ggml_backend_graph_compute_async(s1.get(), twice.graph);
    ggml_backend_tensor_copy_async(s1.get(), other.get(), b.tensor, c.tensor);
    ggml_backend_synchronize(other.get());
    EXPECT_CLEAN();
    CHECK(bytes_of(b.tensor) == bytes_of(c.tensor));
    EXPECT_CLEAN();

    // From and to host memory ggml waits for both streams and copies itself.
    BackendPtr cpu = new_cpu(1);
    Vector host(ggml_backend_cpu_buffer_type(), 256);
    ggml_backend_tensor_copy_async(s0.get(), cpu.get(), b.tensor, host.tensor);
    CHECK(bytes_of(b.tensor) == bytes_of(host.tensor));
    EXPECT_CLEAN();
}

static void test_asynchronous_copies() {
    Vector host(host_type(), 512);
    Vector back(host_type(), 512);
    Vector target(device_type(), 512);
    BackendPtr stream = new_stream();
    fill_random(host.tensor, 4);
    memset(back.floats(), 0, back.bytes());
    ggml_backend_tensor_set_async(stream.get(), target.tensor, host.floats(), 0, 2048);
    ggml_backend_tensor_get_async(stream.get(), target.tensor, back.floats(), 0, 2048);
    loopback_stream state;
    CHECK_EQUAL(call_loopback_stream_get(stream.get(), &state), 0);
    CHECK_EQUAL(state.pending, 1);
    CHECK(memcmp(back.floats(), host.floats(), 2048) != 0);  // not there before the host has waited
    ggml_backend_synchronize(stream.get());
    CHECK(memcmp(back.floats(), host.floats(), 2048) == 0);
    call_loopback_stream_get(stream.get(), &state);
    CHECK_EQUAL(state.pending, 0);
    CHECK_EQUAL(books().blocking_copies, 0);

    // Pageable memory can be reused as soon as the call returns, and has its bytes then.
    std::vector<float> pageable = random_floats(512, 5);
    const std::vector<float> original = pageable;
    ggml_backend_tensor_set_async(stream.get(), target.tensor, pageable.data(), 0, 2048);
    std::fill(pageable.begin(), pageable.end(), 0.0f);
    ggml_backend_tensor_get_async(stream.get(), target.tensor, pageable.data(), 0, 2048);
    CHECK(pageable == original);
    CHECK_EQUAL(books().blocking_copies, 2);

    // Through one pinned staging area in stream order, without the host waiting.
    Vector second(device_type(), 512);
    ggml_backend_tensor_get_async(stream.get(), target.tensor, back.floats(), 0, 2048);
    ggml_backend_tensor_set_async(stream.get(), second.tensor, back.floats(), 0, 2048);
    ggml_backend_synchronize(stream.get());
    CHECK(bytes_of(second.tensor) == bytes_of(target.tensor));

    // A source may be overwritten by a later copy of the same stream.
    fill_random(host.tensor, 6);
    ggml_backend_tensor_set_async(stream.get(), target.tensor, host.floats(), 0, 2048);
    ggml_backend_tensor_get_async(stream.get(), second.tensor, host.floats(), 0, 2048);
    ggml_backend_synchronize(stream.get());
    EXPECT_CLEAN();
    CHECK(call_loopback_stream_get(&state, &state) == -1);
}

// --- order -----------------------------------------------------------------------------------------------------------

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

static void test_order_kept() {
    TwoStreams two;
    for (int i = 0; i < 3; i++) {
        two.upload();
        ggml_backend_event_record(two.arrived.get(), two.copy.get());
        ggml_backend_event_wait(two.compute.get(), two.arrived.get());
        two.use();
        ggml_backend_event_record(two.used.get(), two.compute.get());
        ggml_backend_event_wait(two.copy.get(), two.used.get());
    }
    two.finish();
    EXPECT_CLEAN();
    const std::vector<float> input = random_floats(1024, 8);
    std::vector<float> output(1024);
    ggml_backend_tensor_get(two.output.tensor, output.data(), 0, 4096);
    for (size_t i = 0; i < output.size(); i++) {
        CHECK(output[i] == two.host.floats()[i] + input[i]);
    }
    CHECK_EQUAL(books().event_waits, 6);
    CHECK_EQUAL(books().unrecorded_waits, 0);
}

static void test_read_before_arrival() {
    {
        TwoStreams two;
        two.upload();
        two.use();
        EXPECT_VIOLATIONS(LOOPBACK_READ_BEFORE_ARRIVAL, 1);
        char text[512];
        CHECK(call_loopback_violation_message(0, text, sizeof(text)) > 0);
        CHECK(strstr(text, "Loopback0") != nullptr && strstr(text, "upload") != nullptr);
        CHECK_EQUAL(call_loopback_violation_message(1, text, sizeof(text)), 0u);
    }
    call_loopback_reset();
    {
        TwoStreams two;
        two.upload();
        ggml_backend_synchronize(two.copy.get());
        two.use();
        EXPECT_CLEAN();
    }
    {
        TwoStreams two;
        two.upload();
        ggml_backend_event_record(two.arrived.get(), two.copy.get());
        ggml_backend_event_synchronize(two.arrived.get());
        two.use();
        EXPECT_CLEAN();
    }
    {
        // Recorded too early: the event says nothing about the upload.
        TwoStreams two;
        ggml_backend_event_record(two.arrived.get(), two.copy.get());
        two.upload();
        ggml_backend_event_wait(two.compute.get(), two.arrived.get());
        two.use();
        EXPECT_VIOLATIONS(LOOPBACK_READ_BEFORE_ARRIVAL, 1);
    }
    call_loopback_reset();
    {
        // The host reads a result that it has not waited for.
        TwoStreams two;
        two.upload();
        ggml_backend_synchronize(two.copy.get());
        two.use();
        bytes_of(two.output.tensor);
        EXPECT_VIOLATIONS(LOOPBACK_READ_BEFORE_ARRIVAL, 1);
    }
    call_loopback_reset();
    {
        // ggml reads a host buffer whose download is still on its way.
        TwoStreams two;
        Vector back(host_type(), 1024);
        ggml_backend_tensor_get_async(two.copy.get(), two.input.tensor, back.floats(), 0, 4096);
        bytes_of(back.tensor);
        EXPECT_VIOLATIONS(LOOPBACK_READ_BEFORE_ARRIVAL, 1);
        two.finish();
    }
}

static void test_overwrite_in_use() {
    {
        // A slot is filled again while the last graph may still read it.
        TwoStreams two;
        two.upload();
        ggml_backend_synchronize(two.copy.get());
        two.use();
        two.upload();
        EXPECT_VIOLATIONS(LOOPBACK_OVERWRITE_IN_USE, 1);
    }
    call_loopback_reset();
    {
        // Two uploads of one place on different streams.
        TwoStreams two;
        two.upload();
        ggml_backend_tensor_set_async(two.compute.get(), two.weight.tensor, two.host.floats(), 0, 4096);
        EXPECT_VIOLATIONS(LOOPBACK_OVERWRITE_IN_USE, 1);
    }
    call_loopback_reset();
    {
        // Different halves of one buffer are no conflict.
        TwoStreams two;
        ggml_backend_tensor_set_async(two.copy.get(), two.weight.tensor, two.host.floats(), 0, 2048);
        ggml_backend_tensor_set_async(two.compute.get(), two.weight.tensor, two.host.floats(), 2048, 2048);
        EXPECT_CLEAN();
    }
    {
        // A blocking copy is not ordered after other streams.
        TwoStreams two;
        two.upload();
        ggml_backend_synchronize(two.copy.get());
        two.use();
        fill_random(two.input.tensor, 9);
        EXPECT_VIOLATIONS(LOOPBACK_OVERWRITE_IN_USE, 1);
        two.finish();
    }
    call_loopback_reset();
    {
        // ggml writes to a host buffer that is being read.
        TwoStreams two;
        two.upload();
        fill_random(two.host.tensor, 10);
        EXPECT_VIOLATIONS(LOOPBACK_OVERWRITE_IN_USE, 1);
        two.finish();
    }
}

static void test_free_in_use() {
    {
        TwoStreams two;
        two.upload();
        two.weight.buffer.reset();
        EXPECT_VIOLATIONS(LOOPBACK_FREE_IN_USE, 1);
        two.finish();
    }
    call_loopback_reset();
    {
        TwoStreams two;
        two.upload();
        two.host.buffer.reset();
        EXPECT_VIOLATIONS(LOOPBACK_FREE_IN_USE, 1);
        two.finish();
    }
    call_loopback_reset();
    {
        // A stream that is gone can no longer be waited for.
        TwoStreams two;
        Vector extra(device_type(), 1024);
        {
            BackendPtr third = new_stream();
            ggml_backend_tensor_set_async(third.get(), extra.tensor, two.host.floats(), 0, 4096);
        }
        two.finish();
        extra.buffer.reset();
        EXPECT_VIOLATIONS(LOOPBACK_FREE_IN_USE, 1);
        two.host.buffer.reset();
    }
    call_loopback_reset();
    {
        TwoStreams two;
        two.upload();
        two.finish();
        two.weight.buffer.reset();
        two.host.buffer.reset();
        EXPECT_CLEAN();
    }
}

static void test_source_changed() {
    {
        TwoStreams two;
        two.upload();
        two.host.floats()[17] = 42;
        EXPECT_CLEAN();
        two.finish();
        EXPECT_VIOLATIONS(LOOPBACK_SOURCE_CHANGED, 1);
    }
    call_loopback_reset();
    {
        TwoStreams two;
        two.upload();
        two.finish();
        two.host.floats()[17] = 42;
        EXPECT_CLEAN();
    }
}

static void test_uninitialised() {
    Vector a(device_type(), 64);
    Vector b(device_type(), 64);
    BackendPtr stream = new_stream();
    const std::vector<char> poison = bytes_of(a.tensor);
    CHECK(poison == std::vector<char>(256, static_cast<char>(0xff)));
    EXPECT_VIOLATIONS(LOOPBACK_UNINITIALISED_READ, 1);
    call_loopback_reset();
    const float value = 1;
    ggml_backend_tensor_set(a.tensor, &value, 0, 4);
    Sum sum(a.tensor, a.tensor, b.tensor);
    ggml_backend_graph_compute(stream.get(), sum.graph);
    EXPECT_VIOLATIONS(LOOPBACK_UNINITIALISED_READ, 2);
    call_loopback_reset();
    set("check_uninitialised", 0);
    ggml_backend_graph_compute(stream.get(), sum.graph);
    EXPECT_CLEAN();
}

static void test_wrong_memory() {
    Vector mine(device_type(0), 64);
    Vector theirs(device_type(1), 64);
    Vector host(host_type(), 64);
    Vector result(device_type(0), 64);
    BackendPtr stream = new_stream();
    for (const Vector* vector : {&mine, &theirs, &host}) {
        fill_random(vector->tensor, 11);
    }
    for (const Vector* vector : {&theirs, &host}) {
        Sum sum(mine.tensor, vector->tensor, result.tensor);
        CHECK(ggml_backend_graph_compute(stream.get(), sum.graph) == GGML_STATUS_SUCCESS);
        EXPECT_VIOLATIONS(LOOPBACK_WRONG_MEMORY, 1);
        call_loopback_reset();
    }
    {
        ContextPtr context = new_context();
        ggml_tensor* nothing = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 64);
        Sum sum(mine.tensor, nothing, result.tensor);
        CHECK(ggml_backend_graph_compute(stream.get(), sum.graph) == GGML_STATUS_FAILED);
        EXPECT_VIOLATIONS(LOOPBACK_WRONG_MEMORY, 1);
        call_loopback_reset();
    }
    {
        Vector gone(device_type(0), 64);
        fill_random(gone.tensor, 12);
        Sum sum(mine.tensor, gone.tensor, result.tensor);
        gone.buffer.reset();
        Vector next(device_type(0), 64);  // does not take the place of the freed one
        CHECK(next.tensor->data != gone.tensor->data);
        CHECK(ggml_backend_graph_compute(stream.get(), sum.graph) == GGML_STATUS_FAILED);
        EXPECT_VIOLATIONS(LOOPBACK_WRONG_MEMORY, 1);
        call_loopback_reset();
    }
    {
        ContextPtr context = new_context();
        ggml_tensor* beyond = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 64);
        beyond->data = mine.floats() + 1;
        Sum sum(mine.tensor, beyond, result.tensor);
        CHECK(ggml_backend_graph_compute(stream.get(), sum.graph) == GGML_STATUS_FAILED);
        EXPECT_VIOLATIONS(LOOPBACK_WRONG_MEMORY, 1);
        call_loopback_reset();
        // The place decides, also for tensors without a buffer.
        beyond->data = mine.floats();
        ggml_backend_buffer_set_usage(mine.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_backend_tensor_set_async(stream.get(), beyond, host.floats(), 0, 256);
        ggml_backend_synchronize(stream.get());
        CHECK_EQUAL(books().weight_upload_pinned_bytes, 256);
        EXPECT_CLEAN();
    }
    ggml_backend_tensor_set_async(stream.get(), theirs.tensor, host.floats(), 0, 256);
    EXPECT_VIOLATIONS(LOOPBACK_WRONG_MEMORY, 1);
    call_loopback_reset();
    ggml_backend_tensor_set(mine.tensor, result.tensor->data, 0, 256);
    EXPECT_VIOLATIONS(LOOPBACK_WRONG_MEMORY, 1);
    call_loopback_reset();
    ggml_backend_tensor_get(mine.tensor, result.tensor->data, 0, 256);
    EXPECT_VIOLATIONS(LOOPBACK_WRONG_MEMORY, 1);
}

static void test_events() {
    BackendPtr stream = new_stream();
    BackendPtr other = new_stream(1);
    EventPtr event(ggml_backend_event_new(device()));
    ggml_backend_event_wait(stream.get(), event.get());
    ggml_backend_event_synchronize(event.get());
    CHECK_EQUAL(books().unrecorded_waits, 2);
    EXPECT_CLEAN();

    // A stream of another device may wait for it, but not record it.
    Vector source(device_type(0), 64);
    Vector copy(device_type(1), 64);
    Vector host(host_type(), 64);
    fill_random(host.tensor, 13);
    ggml_backend_tensor_set_async(stream.get(), source.tensor, host.floats(), 0, 256);
    ggml_backend_event_record(event.get(), stream.get());
    ggml_backend_event_wait(other.get(), event.get());
    ggml_backend_tensor_set_async(other.get(), copy.tensor, host.floats(), 0, 256);
    ggml_backend_synchronize(other.get());
    CHECK(bytes_of(source.tensor) == bytes_of(copy.tensor));
    EXPECT_CLEAN();
    ggml_backend_event_record(event.get(), other.get());
    EXPECT_VIOLATIONS(LOOPBACK_WRONG_EVENT, 1);
}

static void test_many_streams() {
    Vector target(device_type(), 64);
    Vector host(host_type(), 64);
    fill_random(host.tensor, 14);
    for (int i = 0; i < 100; i++) {
        BackendPtr a = new_stream();
        BackendPtr b = new_stream();
        ggml_backend_tensor_set_async(i % 2 ? a.get() : b.get(), target.tensor, host.floats(), 0, 256);
        ggml_backend_synchronize(i % 2 ? a.get() : b.get());
    }
    EXPECT_CLEAN();
    CHECK_EQUAL(books().streams_created, 200);
    CHECK_EQUAL(books().streams_live, 0);
}

static void test_host_access() {
    Vector vector(device_type(), 4096);
    fill_random(vector.tensor, 15);
    volatile float* data = vector.floats();
    CHECK_EQUAL(signal_of([] {}), 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they end the process in their own way
    CHECK_EQUAL(signal_of([&] { (void)data[0]; }), SIGSEGV);
    CHECK_EQUAL(signal_of([&] { (void)data[4095]; }), SIGSEGV);
    CHECK_EQUAL(signal_of([&] { data[5] = 1; }), SIGSEGV);
#endif
    CHECK_EQUAL(signal_of([&] {
                    set("strict", 1);
                    TwoStreams two;
                    two.upload();
                    two.use();
                }),
                SIGABRT);
}

static void test_access_map() {
    // Against a model that keeps one last write and all reads for each byte.
    struct Byte {
        loopback::Access writer;
        std::vector<loopback::Access> readers;
    };
    uint32_t seed = 5;
    auto below = [&](uint32_t limit) {
        seed = seed * 1664525u + 1013904223u;
        return (seed >> 16) % limit;
    };
    constexpr uint32_t AGENTS = 4;
    constexpr uint32_t SIZE = 48;
    size_t conflicts[5] = {};
    for (int round = 0; round < 200; round++) {
        loopback::AccessMap map(SIZE, false);
        std::vector<Byte> model(SIZE);
        loopback::VectorClock clocks[AGENTS];
        uint64_t ticks[AGENTS] = {};
        for (int step = 0; step < 80; step++) {
            const loopback::Agent agent = below(AGENTS);
            if (below(3) == 0) {  // one agent waits for another
                clocks[agent].join(clocks[below(AGENTS)]);
                continue;
            }
            clocks[agent].join(clocks[loopback::HOST]);  // whoever is given work knows what the host knows
            clocks[agent].set(agent, ++ticks[agent]);
            const loopback::Access access{agent, ticks[agent], ""};
            const uint64_t begin = below(SIZE);
            const uint64_t end = begin + 1 + below(static_cast<uint32_t>(SIZE - begin));
            const bool writing = below(2) == 0;
            const loopback::VectorClock& known = clocks[agent];
            const loopback::VectorClock& host = clocks[loopback::HOST];
            bool unwritten = false;
            bool early = false;
            bool clash = false;
            for (uint64_t i = begin; i < end; i++) {
                Byte& byte = model[i];
                const bool written = byte.writer.agent != loopback::NOBODY;
                const bool unordered = written && !known.covers(byte.writer);
                if (writing) {
                    clash = clash || unordered;
                    for (const loopback::Access& reader : byte.readers) {
                        clash = clash || !known.covers(reader);
                    }
                    byte.writer = access;
                    byte.readers.clear();
                } else {
                    unwritten = unwritten || !written;
                    early = early || unordered;
                    byte.readers.push_back(access);
                }
            }
            const loopback::Verdict verdict =
                writing ? map.write(begin, end, access, known, host) : map.read(begin, end, access, known, host);
            conflicts[static_cast<size_t>(verdict.conflict)]++;
            if (writing) {
                CHECK_EQUAL(verdict.conflict != loopback::Conflict::NONE, clash);
            } else {
                CHECK_EQUAL(verdict.conflict == loopback::Conflict::READ_BEFORE_WRITE_COMPLETED, early);
                CHECK_EQUAL(verdict.conflict == loopback::Conflict::UNINITIALISED, unwritten && !early);
            }
            bool busy = false;
            for (const Byte& byte : model) {
                busy = busy || (byte.writer.agent != loopback::NOBODY && !host.covers(byte.writer));
                for (const loopback::Access& reader : byte.readers) {
                    busy = busy || !host.covers(reader);
                }
            }
            CHECK_EQUAL(map.unfinished(host).conflict != loopback::Conflict::NONE, busy);
            CHECK(map.span_count() <= SIZE);
        }
    }
    for (size_t count : conflicts) {
        CHECK(count > 50);
    }
    // Once everything is settled, one write leaves one span.
    loopback::AccessMap map(SIZE, false);
    loopback::VectorClock host;
    for (uint64_t i = 0; i < SIZE; i++) {
        host.set(loopback::HOST, i + 1);
        map.write(i, i + 1, loopback::Access{loopback::HOST, i + 1, ""}, host, host);
    }
    CHECK_EQUAL(map.span_count(), 1u);
}

// --- virtual clock ---------------------------------------------------------------------------------------------------

// Numbers that are exact in binary: a mebibyte takes 1/1024 s pinned, 1/256 s pageable.
static void set_clock(double copy_latency = 0) {
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

static void test_engine() {
    using Interval = loopback::Engine::Interval;
    uint32_t seed = 6;
    auto below = [&](uint32_t limit) {
        seed = seed * 1664525u + 1013904223u;
        return static_cast<loopback::Time>((seed >> 16) % limit);
    };
    for (int round = 0; round < 100; round++) {
        loopback::Engine engine;
        std::vector<Interval> done;
        loopback::Time now = 0;
        loopback::Time sum = 0;
        for (int step = 0; step < 50; step++) {
            now += below(4);
            const loopback::Time ready = now + below(30);
            const loopback::Time duration = 1 + below(8);
            const Interval result = engine.reserve(ready, duration, now);
            CHECK(result.begin >= ready && result.end == result.begin + duration);
            auto is_free = [&](loopback::Time begin) {
                for (const Interval& other : done) {
                    if (begin < other.end && other.begin < begin + duration) {
                        return false;
                    }
                }
                return true;
            };
            CHECK(is_free(result.begin));
            for (loopback::Time earlier = ready; earlier < result.begin; earlier++) {
                CHECK(!is_free(earlier));
            }
            done.push_back(result);
            sum += duration;
            CHECK_EQUAL(engine.busy(), sum);
            CHECK_EQUAL(engine.overlap(result), duration);
        }
        CHECK_EQUAL(engine.overlap(Interval{now, now + 1000000}) + 0, [&] {
            loopback::Time total = 0;
            for (const Interval& other : done) {
                total += std::max<loopback::Time>(0, other.end - std::max(other.begin, now));
            }
            return total;
        }());
    }
}

static constexpr int64_t MEBI_FLOATS = 262144;
static constexpr size_t MEBI = 1048576;
static constexpr double PINNED = 1.0 / 1024;
static constexpr double PAGEABLE = 1.0 / 256;

static double stream_seconds(const BackendPtr& stream) {
    loopback_stream state;
    call_loopback_stream_get(stream.get(), &state);
    return state.seconds;
}

static void test_clock_of_copies() {
    set_clock();
    Vector host(host_type(), MEBI_FLOATS);
    Vector target(device_type(), MEBI_FLOATS);
    Vector second(device_type(), MEBI_FLOATS);
    Vector peer(device_type(1), MEBI_FLOATS);
    BackendPtr stream = new_stream();
    std::vector<float> pageable(MEBI_FLOATS);
    memset(host.floats(), 0, MEBI);

    ggml_backend_tensor_set(target.tensor, host.floats(), 0, MEBI);
    CHECK_EQUAL(the_clock().host_seconds, PINNED);
    ggml_backend_tensor_set(target.tensor, pageable.data(), 0, MEBI);
    CHECK_EQUAL(the_clock().host_seconds, PINNED + PAGEABLE);
    CHECK_EQUAL(the_clock().host_wait, PINNED + PAGEABLE);
    CHECK_EQUAL(the_clock().upload_busy, PINNED + PAGEABLE);

    call_loopback_reset();
    CHECK_EQUAL(the_clock().host_seconds, 0.0);
    ggml_backend_tensor_set_async(stream.get(), target.tensor, host.floats(), 0, MEBI);
    ggml_backend_tensor_set_async(stream.get(), second.tensor, host.floats(), 0, MEBI);
    CHECK_EQUAL(the_clock().host_seconds, 0.0);  // pinned: the host goes on
    CHECK_EQUAL(stream_seconds(stream), 2 * PINNED);
    CHECK_EQUAL(the_clock().device_seconds, 2 * PINNED);
    ggml_backend_tensor_set_async(stream.get(), target.tensor, pageable.data(), 0, MEBI);
    CHECK_EQUAL(the_clock().host_seconds, 2 * PINNED + PAGEABLE);  // pageable: the host waits
    ggml_backend_synchronize(stream.get());
    CHECK_EQUAL(the_clock().host_seconds, 2 * PINNED + PAGEABLE);

    call_loopback_reset();
    ggml_backend_tensor_get_async(stream.get(), target.tensor, host.floats(), 0, MEBI);
    CHECK_EQUAL(the_clock().host_seconds, 0.0);
    ggml_backend_synchronize(stream.get());
    CHECK_EQUAL(the_clock().host_seconds, PINNED);
    ggml_backend_tensor_get_async(stream.get(), target.tensor, pageable.data(), 0, MEBI);
    CHECK_EQUAL(the_clock().host_seconds, PINNED + PAGEABLE);
    CHECK_EQUAL(the_clock().download_busy, PINNED + PAGEABLE);
    CHECK_EQUAL(the_clock().upload_busy, 0.0);

    call_loopback_reset();
    ggml_backend_tensor_copy(target.tensor, second.tensor);  // read and written at 4 GiB/s
    CHECK_EQUAL(the_clock().host_seconds, PINNED / 2);
    ggml_backend_tensor_copy(target.tensor, peer.tensor);
    CHECK_EQUAL(the_clock().host_seconds, PINNED / 2 + PINNED * 2);
    ggml_backend_buffer_clear(target.buffer.get(), 0);
    CHECK_EQUAL(the_clock().host_seconds, PINNED / 2 + PINNED * 2 + PINNED / 4);

    set_clock(0.25);
    ggml_backend_tensor_set(target.tensor, host.floats(), 0, MEBI);
    CHECK_EQUAL(the_clock().host_seconds, PINNED + 0.25);
    call_loopback_host_advance(1);
    CHECK_EQUAL(the_clock().host_seconds, PINNED + 1.25);
    CHECK_EQUAL(the_clock().host_wait, PINNED + 0.25);
    EXPECT_CLEAN();
}

static void test_clock_of_engines() {
    set_clock();
    Vector host(host_type(), MEBI_FLOATS);
    Vector a(device_type(), MEBI_FLOATS);
    Vector b(device_type(), MEBI_FLOATS);
    Vector c(device_type(), MEBI_FLOATS);
    memset(host.floats(), 0, MEBI);
    for (Vector* vector : {&a, &b, &c}) {
        ggml_backend_tensor_set(vector->tensor, host.floats(), 0, MEBI);
    }
    BackendPtr s0 = new_stream();
    BackendPtr s1 = new_stream();
    EventPtr event(ggml_backend_event_new(device()));
    Sum sum(a.tensor, a.tensor, b.tensor);  // 3 MiB at 4 GiB/s

    // Both streams share one engine for uploads.
    call_loopback_reset();
    ggml_backend_tensor_set_async(s0.get(), a.tensor, host.floats(), 0, MEBI);
    ggml_backend_tensor_set_async(s1.get(), c.tensor, host.floats(), 0, MEBI);
    CHECK_EQUAL(stream_seconds(s0), PINNED);
    CHECK_EQUAL(stream_seconds(s1), 2 * PINNED);
    ggml_backend_synchronize(s0.get());
    CHECK_EQUAL(the_clock().host_seconds, PINNED);
    ggml_backend_synchronize(s1.get());
    CHECK_EQUAL(the_clock().host_seconds, 2 * PINNED);

    // Compute overlaps with an upload on the other stream.
    call_loopback_reset();
    ggml_backend_graph_compute_async(s0.get(), sum.graph);
    ggml_backend_tensor_set_async(s1.get(), c.tensor, host.floats(), 0, MEBI);
    CHECK_EQUAL(stream_seconds(s0), 0.75 * PINNED);
    CHECK_EQUAL(stream_seconds(s1), PINNED);
    CHECK_EQUAL(the_clock().upload_hidden, 0.75 * PINNED);
    CHECK_EQUAL(the_clock().compute_busy, 0.75 * PINNED);
    CHECK_EQUAL(the_clock().first_compute, 0.0);
    ggml_backend_synchronize(s0.get());
    ggml_backend_synchronize(s1.get());

    // An event joins the streams, and an upload that waits for it does not hold up one that does not.
    call_loopback_reset();
    ggml_backend_graph_compute_async(s0.get(), sum.graph);
    ggml_backend_event_record(event.get(), s0.get());
    ggml_backend_event_wait(s1.get(), event.get());
    ggml_backend_tensor_set_async(s1.get(), a.tensor, host.floats(), 0, MEBI);
    CHECK_EQUAL(stream_seconds(s1), 1.75 * PINNED);
    CHECK_EQUAL(the_clock().upload_hidden, 0.0);
    ggml_backend_tensor_set(c.tensor, host.floats(), 0, MEBI / 2);
    CHECK_EQUAL(the_clock().host_seconds, 0.5 * PINNED);
    CHECK_EQUAL(the_clock().upload_hidden, 0.5 * PINNED);
    ggml_backend_event_synchronize(event.get());
    CHECK_EQUAL(the_clock().host_seconds, 0.75 * PINNED);
    ggml_backend_synchronize(s1.get());
    CHECK_EQUAL(the_clock().host_seconds, 1.75 * PINNED);
    CHECK_EQUAL(the_clock().upload_busy, 1.5 * PINNED);
    EXPECT_CLEAN();

    // Freeing device memory waits for the whole device.
    call_loopback_reset();
    Vector d(device_type(), 64);
    ggml_backend_tensor_set_async(s1.get(), a.tensor, host.floats(), 0, MEBI);
    set("alloc_latency", 1);
    d.buffer.reset();
    CHECK_EQUAL(the_clock().host_seconds, PINNED + 1);
    ggml_backend_synchronize(s1.get());
    EXPECT_CLEAN();
}

static void test_clock_of_graphs() {
    set_clock();
    ContextPtr context = new_context();
    ggml_context* ctx = context.get();
    ggml_tensor* a = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 256, 512);
    ggml_tensor* b = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 256, 1024);
    ggml_tensor* product = ggml_mul_mat(ctx, a, b);                 // 512 x 1024 sums of 256 products
    ggml_tensor* view = ggml_reshape_1d(ctx, product, 512 * 1024);  // costs nothing
    ggml_tensor* scaled = ggml_scale(ctx, view, 2);                 // 2 MiB read, 2 MiB written
    ggml_tensor* index = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 4);
    ggml_tensor* rows = ggml_get_rows(ctx, a, index);  // 4 rows of 1 KiB read and written, 16 bytes
    ggml_cgraph* graph = ggml_new_graph_custom(ctx, 16, false);
    ggml_build_forward_expand(graph, scaled);
    ggml_build_forward_expand(graph, rows);
    loopback_cost cost;
    CHECK_EQUAL(call_loopback_graph_cost(0, graph, &cost), 0);
    CHECK_EQUAL(cost.flops, 2.0 * 256 * 512 * 1024);
    CHECK_EQUAL(cost.bytes, 4.0 * MEBI + 8 * 1024 + 16);
    CHECK_EQUAL(cost.ops, 3);
    auto picoseconds = [](double seconds) { return std::round(seconds * 1e12) / 1e12; };
    CHECK_EQUAL(cost.seconds, picoseconds(0.25 + (4.0 * MEBI + 8 * 1024 + 16) / 4294967296.0));
    set("op_latency", 1);
    set("graph_latency", 0.5);
    call_loopback_graph_cost(0, graph, &cost);
    CHECK_EQUAL(cost.seconds, picoseconds(3.75 + (4.0 * MEBI + 8 * 1024 + 16) / 4294967296.0));

    BufferPtr buffer = allocate(ctx, device_type());
    fill_random(a, 16);
    fill_random(b, 17);
    const int32_t indices[4] = {0, 3, 5, 2};
    ggml_backend_tensor_set(index, indices, 0, sizeof(indices));
    call_loopback_reset();
    BackendPtr stream = new_stream();
    ggml_backend_graph_compute_async(stream.get(), graph);
    CHECK_EQUAL(the_clock().host_seconds, 0.0);
    CHECK_EQUAL(stream_seconds(stream), cost.seconds);
    CHECK_EQUAL(books().flops, cost.flops);
    CHECK_EQUAL(books().ops, 3);
    CHECK_EQUAL(books().graphs, 1);
    ggml_backend_graph_compute(stream.get(), graph);
    CHECK_EQUAL(the_clock().host_seconds, 2 * cost.seconds);
    CHECK_EQUAL(the_clock().last_compute_end, 2 * cost.seconds);

    // Convolutions and attention.
    ggml_tensor* kernel = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, 3, 3, 8, 16);
    ggml_tensor* image = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, 32, 32, 8, 1);
    ggml_tensor* q = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, 64, 100, 4, 1);
    ggml_tensor* k = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, 64, 200, 4, 1);
    const std::pair<ggml_tensor*, double> operations[] = {
        {ggml_conv_2d_direct(ctx, kernel, image, 1, 1, 1, 1, 1, 1), 2.0 * 9 * 8 * 16 * 32 * 32},
        {ggml_conv_2d(ctx, kernel, image, 1, 1, 1, 1, 1, 1), 2.0 * 9 * 8 * 16 * 32 * 32},
        {ggml_flash_attn_ext(ctx, q, k, k, nullptr, 1, 0, 0), 2.0 * 100 * 200 * 4 * 128},
    };
    for (const auto& [operation, flops] : operations) {
        ggml_cgraph* one = ggml_new_graph_custom(ctx, 32, false);
        ggml_build_forward_expand(one, operation);
        call_loopback_graph_cost(0, one, &cost);
        CHECK_EQUAL(cost.flops, flops);
    }
    EXPECT_CLEAN();
}

// Layers copied one ahead into two slots: a copy takes 1/1024 s (4 when pageable), the arithmetic of a layer `working`
// times that. Returns the whole time in the same unit.
static double stream_layers(int layers, double working, bool pinned, bool graph_first) {
    set_clock();
    set("memory_bandwidth", 3 * 1073741824.0 / working);  // a sum touches 3 MiB
    Vector host(pinned ? host_type() : ggml_backend_cpu_buffer_type(), MEBI_FLOATS);
    Vector a(device_type(), MEBI_FLOATS);
    Vector b(device_type(), MEBI_FLOATS);
    Vector out(device_type(), MEBI_FLOATS);
    memset(host.floats(), 0, MEBI);
    Sum sums[2] = {{a.tensor, a.tensor, out.tensor}, {b.tensor, b.tensor, out.tensor}};
    ggml_tensor* slots[2] = {a.tensor, b.tensor};
    BackendPtr copy = new_stream();
    BackendPtr compute = new_stream();
    EventPtr arrived[2];
    EventPtr used[2];
    for (int i = 0; i < 2; i++) {
        arrived[i].reset(ggml_backend_event_new(device()));
        used[i].reset(ggml_backend_event_new(device()));
    }
    auto prefetch = [&](int layer) {
        if (layer < layers) {
            ggml_backend_event_wait(copy.get(), used[layer % 2].get());
            ggml_backend_tensor_set_async(copy.get(), slots[layer % 2], host.floats(), 0, MEBI);
            ggml_backend_event_record(arrived[layer % 2].get(), copy.get());
        }
    };
    prefetch(0);
    for (int layer = 0; layer < layers; layer++) {
        if (!graph_first) {
            prefetch(layer + 1);
        }
        ggml_backend_event_wait(compute.get(), arrived[layer % 2].get());
        ggml_backend_graph_compute_async(compute.get(), sums[layer % 2].graph);
        ggml_backend_event_record(used[layer % 2].get(), compute.get());
        if (graph_first) {
            prefetch(layer + 1);
        }
    }
    ggml_backend_synchronize(compute.get());
    ggml_backend_synchronize(copy.get());
    EXPECT_CLEAN();
    CHECK_EQUAL(the_clock().upload_busy, layers * PINNED * (pinned ? 1 : 4));
    CHECK_EQUAL(the_clock().compute_busy, layers * PINNED * working);
    return the_clock().host_seconds / PINNED;
}

static void test_clock_of_streaming() {
    constexpr int LAYERS = 6;
    for (double working : {0.25, 1.0, 3.0}) {
        // Pinned: all is hidden but the first copy, or but the work of the last layer.
        const double bound = working > 1 ? 1 + LAYERS * working : LAYERS + working;
        for (bool graph_first : {false, true}) {
            CHECK_EQUAL(stream_layers(LAYERS, working, true, graph_first), bound);
            CHECK_EQUAL(the_clock().upload_hidden, (LAYERS - 1) * PINNED * std::min(1.0, working));
        }
        // Pageable: a copy holds the host, so that nothing is hidden unless the graph was given before.
        CHECK_EQUAL(stream_layers(LAYERS, working, false, true), LAYERS * 4 + working);
        CHECK_EQUAL(stream_layers(LAYERS, working, false, false), LAYERS * (4 + working));
        CHECK_EQUAL(the_clock().upload_hidden, 0.0);
    }
}

// --- faults ----------------------------------------------------------------------------------------------------------

static void test_refused_device_memory() {
    set("refuse_device_alloc", 2);
    {
        Vector a(device_type(), 64);
        Vector b(device_type(), 64);
        Vector c(device_type(), 64);
        CHECK(a.buffer != nullptr && b.buffer == nullptr && c.buffer != nullptr);
        CHECK_EQUAL(books().device_refusals, 1);
        CHECK_EQUAL(books().device_allocs, 2);
    }
    set("refuse_device_alloc_count", -1);
    set("refuse_device_alloc", 2);
    {
        Vector a(device_type(), 64);
        Vector b(device_type(), 64);
        Vector c(device_type(), 64);
        Vector other(device_type(1), 64);  // counts for itself
        CHECK(a.buffer != nullptr && b.buffer == nullptr && c.buffer == nullptr && other.buffer != nullptr);
    }
    set("refuse_device_alloc", 0);
    set("memory_total", 3000);
    set("memory_reserved", 1000);
    {
        Vector a(device_type(), 256);
        Vector b(device_type(), 256);
        CHECK(a.buffer != nullptr && b.buffer == nullptr);
        a.buffer.reset();
        Vector c(device_type(), 480);
        CHECK(c.buffer != nullptr);
    }
    EXPECT_CLEAN();
}

static void test_refused_host_memory() {
    set("refuse_host_alloc", 1);
    {
        Vector a(host_type(), 64);  // silently pageable, as on CUDA
        CHECK(a.buffer != nullptr);
        CHECK(ggml_backend_buffer_get_type(a.buffer.get()) == ggml_backend_cpu_buffer_type());
        Vector target(device_type(), 64);
        fill_random(a.tensor, 18);
        ggml_backend_tensor_copy(a.tensor, target.tensor);
        CHECK_EQUAL(books().upload_pageable_bytes, 256);
        CHECK_EQUAL(books().upload_pinned_bytes, 0);
        CHECK_EQUAL(books().host_refusals, 1);
        CHECK_EQUAL(books().host_bytes, 0);
        Vector b(host_type(), 64);
        CHECK(ggml_backend_buffer_get_type(b.buffer.get()) == host_type());
    }
    set("host_fallback", 0);
    set("refuse_host_alloc", 1);
    Vector c(host_type(), 64);
    CHECK(c.buffer == nullptr);
    set("host_memory_total", 400);
    Vector d(host_type(), 64);
    Vector e(host_type(), 64);
    CHECK(d.buffer != nullptr && e.buffer == nullptr);
    set("host_memory_total", 0);
    Vector f(host_type(), 1);
    CHECK(f.buffer == nullptr);
    set("host_buffer", 0);
    CHECK(host_type() == nullptr);
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(device(), &props);
    CHECK(!props.caps.host_buffer);
}

static void test_refused_streams_and_events() {
    set("max_streams", 1, 0);
    {
        BackendPtr a = new_stream();
        BackendPtr b = new_stream();
        BackendPtr other = new_stream(1);
        CHECK(a != nullptr && b == nullptr && other != nullptr);
        CHECK_EQUAL(books().streams_refused, 1);
        a.reset();
        BackendPtr c = new_stream();
        CHECK(c != nullptr);
    }
    set("refuse_event", 2);
    {
        EventPtr a(ggml_backend_event_new(device()));
        EventPtr b(ggml_backend_event_new(device()));
        EventPtr c(ggml_backend_event_new(device()));
        CHECK(a != nullptr && b == nullptr && c != nullptr);
        CHECK_EQUAL(books().events_refused, 1);
    }
    set("max_streams", 0);
    set("events", 0);
    set("async", 0);
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(device(), &props);
    CHECK(!props.caps.events && !props.caps.async);
    CHECK(ggml_backend_event_new(device()) == nullptr);

    // Without asynchronous operations everything has happened when a call returns.
    set_clock();
    TwoStreams two;
    two.upload();
    two.use();
    bytes_of(two.output.tensor);
    two.weight.buffer.reset();
    CHECK(the_clock().host_seconds > 0);
    EXPECT_CLEAN();
}

static void test_buffer_limits() {
    set("max_buffer_size", 4096);
    {
        ContextPtr context = new_context();
        std::vector<ggml_tensor*> tensors;
        for (int i = 0; i < 6; i++) {
            tensors.push_back(ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 512));
        }
        BufferPtr buffer = allocate(context.get(), device_type());
        CHECK(buffer != nullptr);
        CHECK_EQUAL(books().device_allocs, 3);
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (uint32_t i = 0; i < 6; i++) {
            fill_random(tensors[i], i);
        }
        CHECK_EQUAL(books().weight_upload_pageable_copies, 6);
        ggml_backend_buffer_clear(buffer.get(), 0);
        CHECK(bytes_of(tensors[5]) == std::vector<char>(2048));
    }
    CHECK_EQUAL(books().device_bytes, 0);
    set("max_buffer_size", 0);
    set("quantized_row_padding", 512);
    ContextPtr context = new_context();
    ggml_tensor* quantized = ggml_new_tensor_2d(context.get(), GGML_TYPE_Q8_0, 320, 2);
    ggml_tensor* plain = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 320, 2);
    CHECK_EQUAL(ggml_backend_buft_get_alloc_size(device_type(), quantized),
                ggml_nbytes(quantized) + ggml_row_size(GGML_TYPE_Q8_0, 192));
    CHECK_EQUAL(ggml_backend_buft_get_alloc_size(device_type(), plain), ggml_nbytes(plain));
    EXPECT_CLEAN();
}

// --- graphs ----------------------------------------------------------------------------------------------------------

struct Model {
    ContextPtr weights = new_context(32);
    ContextPtr activations = new_context(256, 512);
    BufferPtr weight_buffer;
    BufferPtr activation_buffer;  // instead of the allocator: every tensor keeps its place
    AllocatorPtr allocator;
    std::vector<ggml_tensor*> inputs;
    std::vector<ggml_tensor*> outputs;
    ggml_cgraph* graph = nullptr;

    ggml_tensor* weight(ggml_type type, int64_t a, int64_t b = 1, int64_t c = 1, int64_t d = 1) {
        return ggml_new_tensor_4d(weights.get(), type, a, b, c, d);
    }
    ggml_tensor* input(ggml_type type, int64_t a, int64_t b = 1, int64_t c = 1, int64_t d = 1) {
        ggml_tensor* tensor = ggml_new_tensor_4d(activations.get(), type, a, b, c, d);
        ggml_set_input(tensor);
        inputs.push_back(tensor);
        return tensor;
    }
    void output(ggml_tensor* tensor) {
        ggml_set_output(tensor);
        outputs.push_back(tensor);
    }

    // Operations that image models use, in every way in which an operation can refer to memory.
    void build() {
        ggml_context* ctx = activations.get();
        ggml_tensor* image = input(GGML_TYPE_F32, 16, 16, 8, 1);
        ggml_tensor* ids = input(GGML_TYPE_I32, 5);
        ggml_tensor* tokens = input(GGML_TYPE_F32, 64, 24);
        ggml_tensor* positions = input(GGML_TYPE_I32, 24);

        // Convolutions: through im2col and direct; group norm; in-place operations; upscale; pad; concat.
        ggml_tensor* kernel = weight(GGML_TYPE_F16, 3, 3, 8, 32);
        ggml_tensor* x = ggml_conv_2d(ctx, kernel, image, 1, 1, 1, 1, 1, 1);
        x = ggml_add_inplace(ctx, x, ggml_reshape_4d(ctx, weight(GGML_TYPE_F32, 32), 1, 1, 32, 1));
        x = ggml_group_norm(ctx, x, 4, 1e-6f);
        x = ggml_silu_inplace(ctx, x);
        ggml_tensor* y = ggml_conv_2d_direct(ctx, kernel, image, 1, 1, 1, 1, 1, 1);
        x = ggml_concat(ctx, x, y, 2);
        x = ggml_upscale(ctx, x, 2, GGML_SCALE_MODE_NEAREST);
        x = ggml_pad(ctx, x, 1, 1, 0, 0);
        output(ggml_pool_2d(ctx, x, GGML_OP_POOL_AVG, 2, 2, 2, 2, 0, 0));

        // Attention by hand: views, permutations, copies, softmax; then flash attention.
        ggml_tensor* embedding = ggml_get_rows(ctx, weight(GGML_TYPE_Q8_0, 64, 100), ids);
        ggml_tensor* normed = ggml_mul(ctx, ggml_rms_norm(ctx, tokens, 1e-5f), weight(GGML_TYPE_F32, 64));
        ggml_tensor* qkv = ggml_mul_mat(ctx, weight(GGML_TYPE_F16, 64, 192), normed);
        auto part = [&](size_t index) {
            ggml_tensor* view = ggml_view_3d(ctx, qkv, 16, 4, 24, 16 * 4, qkv->nb[1], index * 64 * 4);
            view = ggml_rope(ctx, view, positions, 16, 0);
            return ggml_cont(ctx, ggml_permute(ctx, view, 0, 2, 1, 3));
        };
        ggml_tensor* q = part(0);
        ggml_tensor* k = part(1);
        ggml_tensor* v = part(2);
        ggml_tensor* scores = ggml_soft_max_inplace(ctx, ggml_scale_inplace(ctx, ggml_mul_mat(ctx, k, q), 0.25f));
        ggml_tensor* mixed = ggml_mul_mat(ctx, ggml_cont(ctx, ggml_transpose(ctx, v)), scores);
        mixed = ggml_cont_2d(ctx, ggml_permute(ctx, mixed, 0, 2, 1, 3), 64, 24);
        output(mixed);
        ggml_tensor* flash = ggml_flash_attn_ext(ctx, q, ggml_cast(ctx, k, GGML_TYPE_F16),
                                                 ggml_cast(ctx, v, GGML_TYPE_F16), nullptr, 0.25f, 0, 0);
        output(flash);

        // Results inside other tensors: copies into views, set, set_rows.
        ggml_tensor* cache = ggml_scale(ctx, tokens, 0.5f);
        ggml_tensor* place = ggml_view_2d(ctx, cache, 64, 5, cache->nb[1], 3 * cache->nb[1]);
        ggml_tensor* stored = ggml_cpy(ctx, embedding, place);
        ggml_tensor* rows = ggml_set_rows(ctx, cache, ggml_scale(ctx, embedding, 3.0f), ids);
        ggml_build_forward_expand(graph, stored);
        ggml_build_forward_expand(graph, rows);
        output(ggml_view_2d(ctx, rows, 32, 24, rows->nb[1], 0));
        output(ggml_set_2d(ctx, mixed, embedding, mixed->nb[1], 2 * mixed->nb[1]));

        // Feed-forward, quantised weights, the last view of which is an output.
        ggml_tensor* hidden = ggml_mul_mat(ctx, weight(GGML_TYPE_Q4_0, 64, 256), mixed);
        hidden = ggml_mul(ctx, ggml_gelu(ctx, ggml_view_2d(ctx, hidden, 128, 24, hidden->nb[1], 0)),
                          ggml_view_2d(ctx, hidden, 128, 24, hidden->nb[1], 128 * 4));
        output(ggml_norm(ctx, ggml_mul_mat(ctx, weight(GGML_TYPE_BF16, 128, 64), hidden), 1e-5f));
        ggml_tensor* timestep = ggml_timestep_embedding(ctx, input(GGML_TYPE_F32, 2), 64, 10000);
        output(ggml_mul_mat(ctx, weight(GGML_TYPE_F32, 64, 8), timestep));
    }

    explicit Model(ggml_backend_buffer_type_t type, bool reuse_memory = true) {
        graph = ggml_new_graph_custom(activations.get(), 512, false);
        build();
        for (ggml_tensor* tensor : outputs) {
            ggml_build_forward_expand(graph, tensor);
        }
        weight_buffer = allocate(weights.get(), type);
        ggml_backend_buffer_set_usage(weight_buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        if (reuse_memory) {
            allocator.reset(ggml_gallocr_new(type));
            CHECK(ggml_gallocr_reserve(allocator.get(), graph));
        } else {
            activation_buffer = allocate(activations.get(), type);
        }
        uint32_t seed = 100;
        for (ggml_tensor* t = ggml_get_first_tensor(weights.get()); t != nullptr;
             t = ggml_get_next_tensor(weights.get(), t)) {
            fill_random(t, seed++);
        }
    }

    std::vector<std::vector<char>> run(ggml_backend_t backend, uint32_t seed) {
        CHECK(allocator == nullptr || ggml_gallocr_alloc_graph(allocator.get(), graph));
        for (ggml_tensor* tensor : inputs) {
            if (tensor->type == GGML_TYPE_I32) {
                std::vector<int32_t> values(static_cast<size_t>(ggml_nelements(tensor)));
                for (size_t i = 0; i < values.size(); i++) {
                    values[i] = static_cast<int32_t>((i * 7 + seed) % 24);
                }
                ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
            } else {
                fill_random(tensor, seed++);
            }
        }
        CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS);
        std::vector<std::vector<char>> result;
        for (ggml_tensor* tensor : outputs) {
            result.push_back(bytes_of(tensor));
        }
        return result;
    }
};

static void test_graph_equals_cpu() {
    BackendPtr stream = new_stream();
    for (int threads : {1, 2, 3}) {
        set("threads", threads);
        BackendPtr cpu = new_cpu(threads);
        Model on_cpu(ggml_backend_cpu_buffer_type());
        Model on_device(device_type());
        for (uint32_t seed = 1; seed <= 2; seed++) {
            const auto expected = on_cpu.run(cpu.get(), seed);
            const auto found = on_device.run(stream.get(), seed);
            CHECK_EQUAL(expected.size(), found.size());
            for (size_t i = 0; i < expected.size(); i++) {
                CHECK(expected[i] == found[i]);
                const float* values = reinterpret_cast<const float*>(found[i].data());
                bool usable = true;
                for (size_t j = 0; j < found[i].size() / 4; j++) {
                    usable = usable && std::isfinite(values[j]);
                }
                CHECK(usable);
            }
        }
    }
    EXPECT_CLEAN();
    CHECK_EQUAL(books().graphs, 6);
}

static bool same_bytes(int, ggml_tensor* a, ggml_tensor* b, void* count) {
    (*static_cast<int*>(count))++;
    CHECK(bytes_of(a) == bytes_of(b));
    return true;
}

static void test_graph_copied_by_ggml() {
    // ggml's own comparison copies the graph to the other backend and runs it node by node.
    set("check_uninitialised", 0);
    set("threads", 2);
    BackendPtr cpu = new_cpu(2);
    BackendPtr stream = new_stream();
    Model model(ggml_backend_cpu_buffer_type(), false);
    model.run(cpu.get(), 1);
    int count = 0;
    CHECK(ggml_backend_compare_graph_backend(cpu.get(), stream.get(), model.graph, same_bytes, &count, nullptr, 0));
    CHECK(count > 40);
    EXPECT_CLEAN();
}

static void test_supported_operations() {
    ContextPtr context = new_context();
    ggml_tensor* a = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 64, 64);
    ggml_tensor* half = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, 64, 64);
    CHECK(ggml_backend_dev_supports_op(device(), ggml_mul_mat(context.get(), half, a)));
    CHECK(!ggml_backend_dev_supports_op(
        device(),
        ggml_map_custom1(context.get(), a, [](ggml_tensor*, const ggml_tensor*, int, int, void*) {}, 1, nullptr)));
    CHECK(!ggml_backend_dev_offload_op(device(), ggml_mul_mat(context.get(), half, a)));
}

static void test_rebound_tensors() {
    // What the engine does with weights: exchange where a tensor of the host lies, compute, and exchange again. And
    // with the tensors between two segments: make them leaves that are views of a cache tensor without a buffer of
    // their own.
    Vector host(host_type(), 1024);
    fill_random(host.tensor, 19);
    BackendPtr stream = new_stream();
    ContextPtr context = new_context();
    ggml_tensor* doubled = ggml_add(context.get(), host.tensor, host.tensor);
    ggml_tensor* view = ggml_view_1d(context.get(), doubled, 512, 1024);
    ggml_tensor* result = ggml_add(context.get(), view, view);
    for (int i = 0; i < 4; i++) {
        result = ggml_scale(context.get(), result, 0.5f);
    }
    ggml_cgraph* first = ggml_new_graph_custom(context.get(), 4, false);
    ggml_cgraph* second = ggml_new_graph_custom(context.get(), 16, false);
    ggml_build_forward_expand(first, doubled);

    Vector copy(device_type(), 1024);
    ggml_backend_tensor_copy(host.tensor, copy.tensor);
    std::swap(host.tensor->buffer, copy.tensor->buffer);
    std::swap(host.tensor->data, copy.tensor->data);
    AllocatorPtr allocator(ggml_gallocr_new(device_type()));
    CHECK(ggml_gallocr_alloc_graph(allocator.get(), first));
    CHECK(ggml_backend_graph_compute(stream.get(), first) == GGML_STATUS_SUCCESS);
    Vector cache(device_type(), 1024);
    ggml_backend_tensor_copy(doubled, cache.tensor);
    std::swap(host.tensor->buffer, copy.tensor->buffer);
    std::swap(host.tensor->data, copy.tensor->data);
    copy.buffer.reset();

    view->view_src = cache.tensor;
    view->buffer = nullptr;
    view->data = static_cast<char*>(cache.tensor->data) + view->view_offs;
    std::fill(std::begin(view->src), std::end(view->src), nullptr);
    view->op = GGML_OP_NONE;
    ggml_build_forward_expand(second, result);
    AllocatorPtr other(ggml_gallocr_new(device_type()));
    CHECK(ggml_gallocr_alloc_graph(other.get(), second));
    CHECK(ggml_backend_graph_compute(stream.get(), second) == GGML_STATUS_SUCCESS);
    std::vector<float> values(512);
    ggml_backend_tensor_get(result, values.data(), 0, 2048);
    for (size_t i = 0; i < 512; i++) {
        CHECK(values[i] == 0.25f * host.floats()[256 + i]);
    }
    EXPECT_CLEAN();
}

// --- dry mode --------------------------------------------------------------------------------------------------------

static void test_dry() {
    set_clock();
    set("dry", 1);
    set("memory_total", std::ldexp(1.0, 40));
    const int64_t columns = 1 << 14;
    const int64_t size = int64_t{1} << 34;  // 16 GiB, several times
    ContextPtr host_context = new_context();
    ContextPtr pageable_context = new_context();
    ContextPtr device_context = new_context();
    ggml_tensor* pinned = ggml_new_tensor_2d(host_context.get(), GGML_TYPE_F16, columns, size / 2 / columns);
    ggml_tensor* pageable = ggml_dup_tensor(pageable_context.get(), pinned);
    ggml_tensor* weight = ggml_dup_tensor(device_context.get(), pinned);
    ggml_tensor* input = ggml_new_tensor_2d(device_context.get(), GGML_TYPE_F32, columns, 16);
    ggml_tensor* product = ggml_mul_mat(device_context.get(), weight, input);
    ggml_cgraph* graph = ggml_new_graph_custom(device_context.get(), 4, false);
    ggml_build_forward_expand(graph, product);
    BufferPtr host_buffer = allocate(host_context.get(), host_type());
    BufferPtr pageable_buffer =
        allocate(pageable_context.get(), static_cast<ggml_backend_buffer_type_t>(call_loopback_pageable_buffer_type()));
    BufferPtr device_buffer = allocate(device_context.get(), device_type());
    CHECK(host_buffer != nullptr && pageable_buffer != nullptr && device_buffer != nullptr);
    CHECK(books().device_bytes > static_cast<uint64_t>(size));
    CHECK(ggml_backend_buffer_is_host(pageable_buffer.get()));

    BackendPtr stream = new_stream();
    ggml_backend_tensor_set(input, pageable->data, 0, ggml_nbytes(input));
    call_loopback_reset();
    ggml_backend_tensor_copy(pageable, weight);
    CHECK_EQUAL(the_clock().host_seconds, 64.0);
    ggml_backend_tensor_copy(pinned, weight);
    CHECK_EQUAL(the_clock().host_seconds, 80.0);
    CHECK(ggml_backend_graph_compute(stream.get(), graph) == GGML_STATUS_SUCCESS);
    CHECK_EQUAL(the_clock().host_seconds, 80.0 + static_cast<double>(size) * 16 / 1073741824.0);
    std::vector<float> result(16);
    ggml_backend_tensor_get(product, result.data(), 0, 64);
    EXPECT_CLEAN();
    ggml_backend_tensor_set_async(stream.get(), weight, pinned->data, 0, 1024);
    BackendPtr other = new_stream();
    ggml_backend_graph_compute(other.get(), graph);
    EXPECT_VIOLATIONS(LOOPBACK_READ_BEFORE_ARRIVAL, 1);  // order is checked all the same
    ggml_backend_synchronize(stream.get());

    long pages = 0;
    FILE* file = fopen("/proc/self/statm", "r");
    if (file != nullptr) {
        CHECK(fscanf(file, "%*d %ld", &pages) == 1);
        fclose(file);
        CHECK(pages * sysconf(_SC_PAGESIZE) < (4L << 30));
    }
}

// --- schedules -------------------------------------------------------------------------------------------------------

// Layers streamed through slots: `dropped` is the wait that is left out, -1: none. Returns the result.
static std::vector<char> run_schedule(uint32_t seed, int layers, int slots, int steps, int dropped) {
    std::vector<std::unique_ptr<Vector>> weights;
    std::vector<std::unique_ptr<Vector>> places;
    std::vector<EventPtr> arrived;
    std::vector<EventPtr> used;
    for (int i = 0; i < layers; i++) {
        weights.push_back(std::make_unique<Vector>(host_type(), 64 + i));
        fill_random(weights.back()->tensor, seed + static_cast<uint32_t>(i));
    }
    for (int i = 0; i < slots; i++) {
        places.push_back(std::make_unique<Vector>(device_type(), 64 + layers));
        arrived.emplace_back(ggml_backend_event_new(device()));
        used.emplace_back(ggml_backend_event_new(device()));
    }
    Vector state(device_type(), 64);
    fill_random(state.tensor, seed);
    BackendPtr copy = new_stream();
    BackendPtr compute = new_stream();
    std::vector<ContextPtr> contexts;

    int waits = 0;
    auto wait = [&](const BackendPtr& stream, const EventPtr& event) {
        if (waits++ != dropped) {
            ggml_backend_event_wait(stream.get(), event.get());
        }
    };
    const int total = layers * steps;
    auto prefetch = [&](int n) {
        const size_t slot = static_cast<size_t>(n % slots);
        Vector& weight = *weights[static_cast<size_t>(n % layers)];
        if (n >= slots) {
            wait(copy, used[slot]);
        }
        ggml_backend_tensor_set_async(copy.get(), places[slot]->tensor, weight.floats(), 0, weight.bytes());
        ggml_backend_event_record(arrived[slot].get(), copy.get());
    };
    for (int n = 0; n < std::min(slots - 1, total); n++) {
        prefetch(n);
    }
    for (int n = 0; n < total; n++) {
        if (n + slots - 1 < total) {
            prefetch(n + slots - 1);
        }
        const size_t slot = static_cast<size_t>(n % slots);
        wait(compute, arrived[slot]);
        contexts.push_back(new_context(8, 8));
        ggml_context* ctx = contexts.back().get();
        ggml_tensor* weight = ggml_view_1d(ctx, places[slot]->tensor, 64, 0);
        ggml_backend_view_init(weight);
        ggml_tensor* sum = ggml_add_inplace(ctx, state.tensor, weight);
        ggml_backend_view_init(sum);
        ggml_cgraph* graph = ggml_new_graph_custom(ctx, 8, false);
        ggml_build_forward_expand(graph, sum);
        ggml_backend_graph_compute_async(compute.get(), graph);
        ggml_backend_event_record(used[slot].get(), compute.get());
    }
    ggml_backend_synchronize(compute.get());
    ggml_backend_synchronize(copy.get());
    return bytes_of(state.tensor);
}

static void test_schedules() {
    set("threads", 1);
    uint32_t seed = 1;
    auto below = [&](uint32_t limit) {
        seed = seed * 1664525u + 1013904223u;
        return static_cast<int>((seed >> 16) % limit);
    };
    for (int round = 0; round < 40; round++) {
        const int layers = 2 + below(6);
        const int slots = 2 + below(3);
        const int steps = 1 + below(3);
        set("copy_latency", below(100) * 1e-6);
        set("op_latency", below(100) * 1e-6);
        run_schedule(seed, layers, slots, steps, -1);
        EXPECT_CLEAN();
        const int waits = static_cast<int>(books().event_waits);
        call_loopback_reset();
        // Every single wait is needed: without it the schedule is caught. Only the last one of a stream whose work is
        // ordered some other way could be spared, and this schedule has none.
        for (int attempt = 0; attempt < 3; attempt++) {
            run_schedule(seed, layers, slots, steps, below(static_cast<uint32_t>(waits)));
            CHECK(violations() > 0);
            call_loopback_reset();
        }
    }
}

static void test_threads() {
    auto work = [](int index) {
        Vector host(host_type(index), 256);
        Vector a(device_type(index), 256);
        Vector b(device_type(index), 256);
        BackendPtr stream = new_stream(index);
        EventPtr event(ggml_backend_event_new(device(index)));
        memset(host.floats(), 0, host.bytes());
        for (int i = 0; i < 50; i++) {
            host.floats()[0] = static_cast<float>(i);
            ggml_backend_tensor_set_async(stream.get(), a.tensor, host.floats(), 0, 1024);
            ggml_backend_event_record(event.get(), stream.get());
            Sum sum(a.tensor, a.tensor, b.tensor);
            ggml_backend_graph_compute_async(stream.get(), sum.graph);
            ggml_backend_event_synchronize(event.get());
            ggml_backend_synchronize(stream.get());
            float value = 0;
            ggml_backend_tensor_get(b.tensor, &value, 0, 4);
            if (value != 2 * static_cast<float>(i)) {
                abort();
            }
        }
    };
    std::vector<std::thread> threads;
    set("threads", 1);
    for (int i = 0; i < 4; i++) {
        threads.emplace_back(work, i % 2);
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    EXPECT_CLEAN();
}

// --- main ------------------------------------------------------------------------------------------------------------

static const std::pair<const char*, void (*)()> TESTS[] = {
    {"devices", test_devices},
    {"options", test_options},
    {"blocking_copies", test_blocking_copies},
    {"pinned_and_weights", test_pinned_and_weights},
    {"memory_books", test_memory_books},
    {"device_copies", test_device_copies},
    {"asynchronous_copies", test_asynchronous_copies},
    {"order_kept", test_order_kept},
    {"read_before_arrival", test_read_before_arrival},
    {"overwrite_in_use", test_overwrite_in_use},
    {"free_in_use", test_free_in_use},
    {"source_changed", test_source_changed},
    {"uninitialised", test_uninitialised},
    {"wrong_memory", test_wrong_memory},
    {"events", test_events},
    {"many_streams", test_many_streams},
    {"host_access", test_host_access},
    {"access_map", test_access_map},
    {"engine", test_engine},
    {"clock_of_copies", test_clock_of_copies},
    {"clock_of_engines", test_clock_of_engines},
    {"clock_of_graphs", test_clock_of_graphs},
    {"clock_of_streaming", test_clock_of_streaming},
    {"refused_device_memory", test_refused_device_memory},
    {"refused_host_memory", test_refused_host_memory},
    {"refused_streams_and_events", test_refused_streams_and_events},
    {"buffer_limits", test_buffer_limits},
    {"graph_equals_cpu", test_graph_equals_cpu},
    {"graph_copied_by_ggml", test_graph_copied_by_ggml},
    {"supported_operations", test_supported_operations},
    {"rebound_tensors", test_rebound_tensors},
    {"dry", test_dry},
    {"schedules", test_schedules},
    {"threads", test_threads},
};

int main(int argc, char** argv) {
    std::string module = LOOPBACK_MODULE;
    std::string cpu = LOOPBACK_CPU_DIRECTORY;
    std::vector<std::string> wanted;
    for (int i = 1; i < argc; i++) {
        const std::string argument = argv[i];
        if (argument == "--module" && i + 1 < argc) {
            module = argv[++i];
        } else if (argument == "--cpu" && i + 1 < argc) {
            cpu = argv[++i];
        } else if (argument == "--list") {
            for (const auto& [name, function] : TESTS) {
                puts(name);
            }
            return 0;
        } else {
            wanted.push_back(argument);
        }
    }
    ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);  // refusals are wanted here
    ggml_backend_load_all_from_path(cpu.c_str());
    loopback_registry = ggml_backend_load(module.c_str());
    if (loopback_registry == nullptr || ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
        fprintf(stderr, "cannot load %s and a CPU backend from %s\n", module.c_str(), cpu.c_str());
        return 2;
    }
    size_t done = 0;
    for (const auto& [name, function] : TESTS) {
        bool chosen = wanted.empty();
        for (const std::string& one : wanted) {
            chosen = chosen || one == name;
        }
        if (!chosen) {
            continue;
        }
        loopback_config config;
        call_loopback_config_default(&config);
        call_loopback_config_set(-1, &config);
        call_loopback_reset();
        const int before = failures;
        function();
        const loopback_books left = books(-1);
        CHECK_EQUAL(left.device_bytes, 0);
        CHECK_EQUAL(left.host_bytes, 0);
        CHECK_EQUAL(left.streams_live, 0);
        CHECK_EQUAL(left.events_live, 0);
        printf("%s %s\n", failures == before ? "ok  " : "FAIL", name);
        fflush(stdout);
        done++;
    }
    if (done < wanted.size()) {
        fprintf(stderr, "unknown test\n");
        return 2;
    }
    return failures == 0 ? 0 : 1;
}
