// The virtual clock.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "loopback_clock.h"
#include "test_loopback.h"

void test_engine() {
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

void test_clock_of_copies() {
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

void test_clock_of_engines() {
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

void test_clock_of_graphs() {
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

void test_clock_of_streaming() {
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
