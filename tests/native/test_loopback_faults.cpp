// Refusals and limits.
#include <vector>

#include "test_loopback.h"

void test_refused_device_memory() {
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

void test_refused_host_memory() {
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

void test_refused_streams_and_events() {
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

void test_buffer_limits() {
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
