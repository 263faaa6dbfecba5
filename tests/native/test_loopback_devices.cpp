// Devices, options, copies and the books that are kept of them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "test_loopback.h"

// --- devices ---------------------------------------------------------------------------------------------------------

void test_devices() {
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

void test_options() {
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

void test_blocking_copies() {
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

void test_pinned_and_weights() {
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

void test_memory_books() {
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

void test_device_copies() {
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

void test_asynchronous_copies() {
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
