// Whole schedules of copies and graphs, and several threads.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "test_loopback.h"

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

void test_schedules() {
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

void test_threads() {
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
