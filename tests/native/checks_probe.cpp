// Fails engine checks on purpose, on each kind of thread that the engine has. Part of the engine library in test builds
// only.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ggml-cpp.h"
#include "ggml-impl.h"
#include "ggml_extend_backend.hpp"
#include "sdcpp/api/run.h"
#include "sdcpp/api/turns.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/threads/team.h"

namespace {

using namespace sdcpp;

struct Trip {
    int thread;      // whose check fails, counted from 0, or backwards from -1
    bool exception;  // an exception is thrown instead
    bool meet;       // meanwhile the others wait for it inside the node
};

void trip_over(ggml_tensor* dst, const ggml_tensor* a, int ith, int nth, void* data) {
    const Trip& trip = *static_cast<Trip*>(data);
    if (ith == (trip.thread < 0 ? nth + trip.thread : trip.thread)) {
        if (trip.exception) {
            throw std::length_error("thrown on purpose");
        }
        GGML_ASSERT(a == nullptr && "failed on purpose");
    }
    if (trip.meet) {
        sdcpp_team_meet_inside(sdcpp_team_inside());
        std::abort();  // there was nobody to meet
    }
    (void) dst;
}

// Computes a graph in which the threads meet often, and in the middle of which one of them trips.
bool compute(int threads, Trip* trip) {
    ggml_backend_ptr backend(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(backend.get(), threads);
    ggml_context_ptr ctx(ggml_init({64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor* weights = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, 64, 64);
    ggml_tensor* at = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, 64);
    for (int i = 0; i < 16; ++i) {
        at = ggml_mul_mat(ctx.get(), weights, at);  // meets inside: its operand is converted first
        if (i == 8 && trip != nullptr) {
            at = ggml_map_custom1(ctx.get(), at, trip_over, threads, trip);
        }
    }
    ggml_cgraph* graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, at);
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
    ggml_backend_buffer_clear(buffer.get(), 0);
    Placement placement;
    return graph_compute(placement, backend.get(), graph) == GGML_STATUS_SUCCESS;
}

// Takes rows of a tensor; the last of them, which the last thread takes, is not there.
bool take_rows(int threads) {
    ggml_backend_ptr backend(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(backend.get(), threads);
    ggml_context_ptr ctx(ggml_init({8 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor* const rows = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 64);
    ggml_tensor* const index = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, 64);
    ggml_tensor* const out = ggml_get_rows(ctx.get(), rows, index);
    ggml_cgraph* graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, out);
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
    ggml_backend_buffer_clear(buffer.get(), 0);
    const int32_t wrong = 1000;
    ggml_backend_tensor_set(index, &wrong, sizeof(int32_t) * 63, sizeof(int32_t));
    Placement placement;
    return graph_compute(placement, backend.get(), graph) == GGML_STATUS_SUCCESS;
}

bool throw_while_unwinding() {
    try {
        const OnExit also([] { throw std::runtime_error("thrown while unwinding"); });
        throw std::runtime_error("thrown first");
    } catch (const std::runtime_error&) {
        return true;
    }
}

}  // namespace

extern "C" {

// Fails as a backend does whose call failed: it says what the call returned, where it was, and the call, and then fails a
// check; or it throws what the call returned, without a call.
SD_API sdcpp_status_t sdcpp_probe_device(sdcpp_run_t* run, const char* returned, const char* call) {
    return run_guarded(*run, [&]() -> bool {
        if (call == nullptr) {
            throw std::runtime_error(returned);
        }
        GGML_LOG_ERROR("CUDA error: %s\n", returned);
        GGML_LOG_ERROR("  current device: 0, in function alloc at ggml-cuda.cu:409\n");
        GGML_LOG_ERROR("  %s\n", call);
        GGML_ABORT("CUDA error");
    });
}

// Fails in a place: "nowhere", "caller", "loader", "thread" (of the CPU backend, by its number), "exception" (there, but
// no check), "inside" (there, while the others wait inside the node), "row" (an index that is out of bounds) or
// "unwinding". Returns how the run ended.
SD_API sdcpp_status_t sdcpp_probe_check(sdcpp_run_t* run, const char* place, int threads, int thread) {
    return run_guarded(*run, [&] {
        backends_load();
        const std::string where = place;
        Trip trip = {thread, where == "exception", where == "inside"};
        if (where == "caller") {
            GGML_ASSERT(place == nullptr && "failed on purpose");
        }
        if (where == "loader") {
            std::atomic<bool> failed{false};
            std::vector<std::thread> workers;
            for (int i = 0; i < threads; ++i) {
                workers.emplace_back(guard_worker(failed, [i, threads] { GGML_ASSERT(i >= threads && "failed on purpose"); }));
            }
            for (auto& worker : workers) {
                worker.join();
            }
            return !failed;
        }
        if (where == "row") {
            return take_rows(threads);
        }
        if (where == "unwinding") {
            return throw_while_unwinding();
        }
        return compute(threads, where == "nowhere" ? nullptr : &trip);
    });
}

}  // extern "C"
