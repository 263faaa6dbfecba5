// What must come before what: reading, overwriting and freeing memory while a stream uses it.
#include <signal.h>

#include <cstring>
#include <vector>

#include "loopback_order.h"
#include "test_loopback.h"

void test_order_kept() {
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

void test_read_before_arrival() {
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

void test_overwrite_in_use() {
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

void test_free_in_use() {
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

void test_source_changed() {
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

void test_uninitialised() {
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

void test_wrong_memory() {
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

void test_events() {
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

void test_many_streams() {
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

void test_host_access() {
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

void test_access_map() {
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
