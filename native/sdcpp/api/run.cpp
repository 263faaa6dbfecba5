// One run of the engine: the guarded entry points, cancelling, the phases and the error text.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ggml_extend_backend.hpp"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/api/sdcpp.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/streaming.h"
#include "util.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto poll_interval = std::chrono::milliseconds(50);
constexpr auto load_interval = std::chrono::milliseconds(2);

// A failed engine check (GGML_ASSERT): the engine would end the process, we unwind to the entry point instead.
struct CheckFailed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Run {
    std::string error;
    bool broken = false;
    bool no_room = false;
    std::vector<sdcpp_phase_t> phases;
    Clock::time_point phase_start;
};

thread_local Run run;
thread_local bool running = false;
thread_local int whole_graphs = 0;
thread_local bool whole_begun = false;

std::atomic<bool> cancelled{false};
sdcpp_poll_cb_t poll_callback = nullptr;
void* poll_data = nullptr;
Clock::time_point last_poll;
sdcpp_tap_cb_t tap_callback = nullptr;
void* tap_data = nullptr;

bool cancel_requested(void* = nullptr) {
    if (!cancelled && running && poll_callback != nullptr) {
        const auto now = Clock::now();
        if (now - last_poll >= poll_interval) {
            last_poll = now;
            if (poll_callback(poll_data)) {
                cancelled = true;
            }
        }
    }
    return cancelled;
}

void phase_end() {
    if (!run.phases.empty()) {
        run.phases.back().seconds += std::chrono::duration<double>(Clock::now() - run.phase_start).count();
    }
}

// Hands a graph's output, which is its last node, to the tap.
void tap_output(const ggml_tensor* output) {
    if (output->type != GGML_TYPE_F32 || !ggml_is_contiguous(output)) {
        return;
    }
    std::vector<float> values(static_cast<size_t>(ggml_nelements(output)));
    ggml_backend_tensor_get(output, values.data(), 0, ggml_nbytes(output));
    tap_callback(run.phases.empty() ? "" : run.phases.back().name, output->ne, values.data(), tap_data);
}

void check_failed(const char* message) {
    if (!running) {
        // Another thread of the engine, or no entry point of ours above: unwinding would end the process as well,
        // and ggml's own abort follows.
        sdcpp::error_record(CheckFailed(message));
        return;
    }
    run.broken = true;
    throw CheckFailed(message);
}

// Runs the engine on this thread, with checks turned into errors, and says how it ended.
template <typename F>
sdcpp_status_t run_guarded(F&& function) {
    run = Run{};
    cancelled = false;
    running = true;
    last_poll = Clock::now();
    const auto previous = ggml_set_abort_callback(check_failed);
    const bool done = sdcpp::guard(function);
    ggml_set_abort_callback(previous);
    running = false;
    phase_end();
    // A cancelled graph leaves no result, and parts of the engine check for one: that is no broken context.
    if (cancelled) {
        return SDCPP_CANCELLED;
    }
    if (run.broken) {
        return SDCPP_BROKEN;
    }
    return done ? SDCPP_OK : run.no_room ? SDCPP_NO_ROOM : SDCPP_FAILED;
}

}  // namespace

namespace sdcpp {

ggml_status graph_compute(Placement& placement, ggml_backend_t backend, ggml_cgraph* graph) {
    if (!whole_begun && cancel_requested()) {
        return GGML_STATUS_ABORTED;
    }
    whole_begun = whole_graphs > 0;
    // The CPU backend asks between two nodes; a device backend is asked between two graphs.
    if (ggml_backend_is_cpu(backend)) {
        ggml_backend_cpu_set_abort_callback(backend, whole_graphs > 0 ? nullptr : cancel_requested, nullptr);
    }
    note_computing(placement, graph);
    const ggml_status status = stream_bound(placement)
                                   ? stream_compute(placement, graph, [] { return cancel_requested(); })
                                   : ggml_backend_graph_compute(backend, graph);
    if (tap_callback != nullptr && status == GGML_STATUS_SUCCESS) {
        tap_output(ggml_graph_node(graph, -1));
    }
    return status;
}

bool run_cancelled() {
    return cancelled;
}

WholeGraphs::WholeGraphs() {
    ++whole_graphs;
}

WholeGraphs::~WholeGraphs() {
    --whole_graphs;
    whole_begun = false;
}

void phase_begin(const char* name) {
    phase_end();
    run.phases.push_back({name, 0.0});
    run.phase_start = Clock::now();
}

void load_wait(std::atomic<bool>& failed) {
    if (cancel_requested()) {
        failed = true;
        return;
    }
    std::this_thread::sleep_for(load_interval);
}

bool pixels_finite(const float* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (!std::isfinite(values[i])) {
            LOG_ERROR("the decoded image holds NaN or infinite values: the weights, their type or the VAE do not fit");
            return false;
        }
    }
    return true;
}

void context_broken() {
    run.broken = true;
}

void error_record(const std::exception& error) noexcept {
    try {
        run.no_room = dynamic_cast<const NoRoom*>(&error) != nullptr;
        run.error = error.what();
        LOG_ERROR("%s", error.what());
    } catch (...) {
        // Out of memory while reporting: the status alone tells.
    }
}

}  // namespace sdcpp

void sdcpp_set_poll_callback(sdcpp_poll_cb_t poll, void* data) {
    poll_callback = poll;
    poll_data = data;
}

void sdcpp_set_tap_callback(sdcpp_tap_cb_t tap, void* data) {
    tap_callback = tap;
    tap_data = data;
}

void sdcpp_cancel(void) {
    cancelled = true;
}

const char* sdcpp_last_error(void) {
    return run.error.c_str();
}

sdcpp_status_t sdcpp_weights_survey(const sd_ctx_params_t* params, sdcpp_weights_t* weights, int capacity, int* count) {
    *count = 0;
    const sdcpp_status_t status = run_guarded([&] {
        sdcpp::backends_load();
        sd_ctx_params_t wanted = *params;
        // Loading PhotoMaker reads weights while the context is made, so its file is looked at by itself.
        wanted.photo_maker_path = nullptr;
        auto placements = std::make_shared<sdcpp::Placements>(&wanted);
        placements->survey_begin();
        {
            sdcpp::PlacementScope scope(placements);
            if (sd_ctx_t* made = new_sd_ctx(&wanted)) {
                free_sd_ctx(made);
            }
        }
        auto& bytes = placements->surveyed;
        if (bytes.empty()) {
            return false;
        }
        if (params->photo_maker_path != nullptr && params->photo_maker_path[0] != '\0') {
            bytes["photomaker"] += sdcpp::file_bytes(params->photo_maker_path, "pmid.");
        }
        for (const auto& name : sdcpp::module_names) {
            if (bytes.count(name) != 0 && *count < capacity) {
                weights[(*count)++] = {name.c_str(), bytes[name]};
            }
        }
        return true;
    });
    return status == SDCPP_BROKEN ? SDCPP_FAILED : status;
}

sdcpp_status_t sdcpp_ctx_new(const sd_ctx_params_t* params, const sdcpp_placement_t* placements, int count,
                             sd_ctx_t** ctx) {
    *ctx = nullptr;
    sd_ctx_t* made = nullptr;
    const sdcpp_status_t status = run_guarded([&] {
        sdcpp::backends_load();
        auto wanted = std::make_shared<sdcpp::Placements>(params);
        wanted->apply(placements, count);
        sdcpp::PlacementScope scope(wanted);
        made = new_sd_ctx(params);
        return made != nullptr;
    });
    if (status == SDCPP_OK) {
        *ctx = made;
    } else if (made != nullptr) {
        sdcpp_ctx_free(made);
    }
    // Nothing of a context that could not be made is left, so the caller has nothing to free.
    return status == SDCPP_BROKEN ? SDCPP_FAILED : status;
}

void sdcpp_ctx_free(sd_ctx_t* ctx) {
    if (ctx != nullptr) {
        sdcpp::guard([&] {
            free_sd_ctx(ctx);
            return true;
        });
    }
}

sdcpp_status_t sdcpp_image_generate(sd_ctx_t* ctx, const sd_img_gen_params_t* params, sd_image_t** images) {
    *images = nullptr;
    sd_image_t* made = nullptr;
    const sdcpp_status_t status = run_guarded([&] {
        sdcpp::placements_of(ctx)->memory_budget.begin_generation();
        made = generate_image(ctx, params);
        return made != nullptr;
    });
    if (status == SDCPP_OK) {
        *images = made;
    } else {
        sdcpp_images_free(made, params->batch_count);
    }
    return status;
}

void sdcpp_images_free(sd_image_t* images, int count) {
    if (images == nullptr) {
        return;
    }
    for (int i = 0; i < count; ++i) {
        std::free(images[i].data);
    }
    std::free(images);
}

int sdcpp_phase_count(void) {
    return static_cast<int>(run.phases.size());
}

bool sdcpp_phase_get(int index, sdcpp_phase_t* phase) {
    if (phase == nullptr || index < 0 || index >= sdcpp_phase_count()) {
        return false;
    }
    *phase = run.phases[static_cast<size_t>(index)];
    return true;
}
