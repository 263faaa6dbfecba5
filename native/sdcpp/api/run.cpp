// What one call of the engine hears, asks and leaves, and the seams that belong to it.
#include "sdcpp/api/run.h"

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "ggml_extend_backend.hpp"
#include "sdcpp/kernels/policy.h"
#include "sdcpp/lanes/lane_group.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/streaming/long_graphs.h"
#include "sdcpp/streaming/no_room.h"
#include "sdcpp/streaming/streaming.h"
#include "sdcpp/threads/freeing.h"
#include "sdcpp/threads/team.h"
#include "sdcpp/values/finite.h"
#include "sdcpp/values/refused.h"
#include "util.h"

namespace {

using Clock = std::chrono::steady_clock;
using sdcpp::Run;

constexpr size_t lines_of_failure = 3;
constexpr auto load_interval = std::chrono::milliseconds(2);

std::atomic<sd_log_cb_t> process_log{nullptr};
std::atomic<void*> process_log_data{nullptr};

void log_route(sd_log_level_t level, const char* text, void*) {
    const Run* run = sdcpp::run_current();
    if (run != nullptr && run->callbacks.log != nullptr) {
        sdcpp::on_caller([&] { run->callbacks.log(level, text, run->callbacks.data); });
    } else if (const sd_log_cb_t log = process_log) {
        log(level, text, process_log_data);
    }
}

void ggml_log_route(ggml_log_level level, const char* text, void*) {
    if (Run* const run = sdcpp::run_current(); run != nullptr && level == GGML_LOG_LEVEL_ERROR) {
        run->said(text);
    }
    log_printf(level >= GGML_LOG_LEVEL_ERROR && level != GGML_LOG_LEVEL_CONT ? SD_LOG_ERROR
               : level == GGML_LOG_LEVEL_WARN                                ? SD_LOG_WARN
                                                                             : SD_LOG_DEBUG,
               "ggml", 0, "%s", text);
}

void progress_route(int step, int steps, float seconds, void*) {
    if (const Run* run = sdcpp::run_current()) {
        sdcpp::on_caller([&] { run->progressed(step, steps, seconds); });
    }
}

void check_route(const char* message) {
    Run* run = sdcpp::run_current();
    if (run != nullptr) {
        run->check_failed(message, sdcpp_team_inside() != nullptr);
    }
    sdcpp_team_fail(message);
    if (run != nullptr) {
        throw sdcpp::CheckFailed(message);
    }
    // A thread that is none of ours: nobody would catch it, and ggml's own abort follows.
    std::fprintf(stderr, "%s\n", message);
}

void preview_hear(int step, int count, sd_image_t* frames, bool noisy, void* data) {
    const Run* run = sdcpp::run_current();
    sdcpp::on_caller([&] { run->callbacks.preview(step, count, frames, noisy, data); });
}

// The engine asks for previews on the thread that draws the picture.
void preview_route(const Run* run, bool due = true) {
    const bool wanted = run != nullptr && run->callbacks.preview != nullptr;
    sd_set_preview_callback(
        wanted ? preview_hear : nullptr, wanted ? run->callbacks.preview_mode : PREVIEW_NONE,
        wanted ? run->callbacks.preview_interval : 1, due, false, wanted ? run->callbacks.data : nullptr);
}

// Asked when something of a device is freed: after a failed check the device may be what failed.
bool device_answers(ggml_backend_dev_t device) {
    Run* run = sdcpp::run_current();
    if (run == nullptr || !run->is_broken() || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        return true;
    }
    Run question;
    return sdcpp::run_guarded(question, [&] {
               size_t free_bytes = 0;
               size_t total_bytes = 0;
               ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
               return true;
           }) == SDCPP_OK;
}

sdcpp_status_t failure_of(const std::exception& exception) {
    return dynamic_cast<const sdcpp::NoRoom*>(&exception) != nullptr      ? SDCPP_NO_ROOM
           : dynamic_cast<const sdcpp::Refused*>(&exception) != nullptr   ? SDCPP_REFUSED
           : dynamic_cast<const sdcpp::NotFinite*>(&exception) != nullptr ? SDCPP_NOT_FINITE
                                                                          : SDCPP_FAILED;
}

bool cancel_requested(void* run) {
    return run != nullptr && static_cast<Run*>(run)->poll_cancelled();
}

// Returns what a graph gives: its last node, or the last one of each of its lanes.
std::vector<ggml_tensor*> outputs_of(const sdcpp::Placement& placement, ggml_cgraph* graph) {
    const auto* const lanes = placement.lanes.get();
    return lanes != nullptr && lanes->graph() == graph ? lanes->results()
                                                       : std::vector<ggml_tensor*>{ggml_graph_node(graph, -1)};
}

// Hands an output of a graph to the tap.
void tap_output(const Run& run, const ggml_tensor* output) {
    if (output->type != GGML_TYPE_F32 || !ggml_is_contiguous(output)) {
        return;
    }
    std::vector<float> values(static_cast<size_t>(ggml_nelements(output)));
    ggml_backend_tensor_get(output, values.data(), 0, ggml_nbytes(output));
    run.callbacks.tap(run.phases.empty() ? "" : run.phases.back().name, output->ne, values.data(), run.callbacks.data);
}

}  // namespace

sdcpp_run::~sdcpp_run() {
    for (int i = 0; images.images != nullptr && i < images.count; ++i) {
        std::free(images.images[i].data);
    }
    std::free(images.images);
}

const char* sdcpp_run::keep(const char* text) {
    return text != nullptr ? texts.emplace_back(text).c_str() : nullptr;
}

void sdcpp_run::failed(const std::exception& exception) {
    std::lock_guard<std::mutex> lock(mutex);
    if (broken) {
        return;
    }
    error = exception.what();
    failure = failure_of(exception);
    if (failure == SDCPP_FAILED && sdcpp::says_no_room(error)) {
        failure = SDCPP_NO_ROOM;
        error = sdcpp::no_room_within(error);
    }
}

void sdcpp_run::said(const char* line) {
    std::lock_guard<std::mutex> lock(mutex);
    lines.emplace_back(line);
    if (lines.size() > lines_of_failure) {
        lines.pop_front();
    }
}

void sdcpp_run::check_failed(const char* message, bool in_graph) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!broken && (in_graph || !stopping)) {
        broken = true;
        error = message;
        // A backend's call that failed: what it returned, where, and the call.
        const bool call = lines.size() == lines_of_failure && lines.front().find(" error: ") != std::string::npos;
        std::string reason = call ? lines.front().substr(lines.front().find(" error: ") + 8) : error;
        reason.erase(reason.find_last_not_of(" \r\n") + 1);
        failure = sdcpp::says_no_room(reason) ? SDCPP_NO_ROOM : SDCPP_FAILED;
        if (failure == SDCPP_NO_ROOM) {
            error = sdcpp::no_room_within(reason);
        }
    }
}

bool sdcpp_run::is_broken() {
    std::lock_guard<std::mutex> lock(mutex);
    return broken;
}

bool sdcpp_run::poll_cancelled() {
    if (!cancelled && callbacks.poll != nullptr) {
        const auto now = Clock::now();
        if (now - last_poll >= Run::poll_interval) {
            last_poll = now;
            if (callbacks.poll(callbacks.data)) {
                cancelled = true;
            }
        }
    }
    if (cancelled) {
        stopping = true;
    }
    return cancelled;
}

void sdcpp_run::phase_begin(const char* name) {
    phase_end();
    phases.push_back({name, 0.0});
    phase_start = Clock::now();
    progressed(0, 0, 0.0);
}

void sdcpp_run::phase_end() {
    if (!phases.empty()) {
        phases.back().seconds += std::chrono::duration<double>(Clock::now() - phase_start).count();
        phase_start = Clock::now();
    }
}

void sdcpp_run::progressed(int done, int of, double seconds) const {
    if (callbacks.progress == nullptr) {
        return;
    }
    sdcpp_progress_t progress{phases.empty() ? "loading" : phases.back().name, done, of, 0, pictures, bytes_read, seconds};
    const std::string phase = progress.phase;
    if (phase == "sampling") {
        progress.picture = sampling.picture + 1;
    } else if (phase == "decoding") {
        progress.picture = decoded + 1;
    }
    callbacks.progress(&progress, callbacks.data);
}

sdcpp_status_t sdcpp_run::outcome(bool done) const {
    // What failed before the engine saw the cancel failed by itself, and no cancel hides that.
    if (broken || half_changed) {
        return SDCPP_BROKEN;
    }
    if (stopping || (cancelled && done)) {
        return SDCPP_CANCELLED;
    }
    return done ? SDCPP_OK : failure;
}

namespace sdcpp {

void routes_install() {
    static std::once_flag once;
    std::call_once(once, [] {
        sd_set_log_callback(log_route, nullptr);
        // ggml writes to standard error until somebody takes its lines; a backend that is loaded later takes them too.
        ggml_log_set(ggml_log_route, nullptr);
        sd_set_progress_callback(progress_route, nullptr);
        ggml_set_abort_callback(check_route);
        sdcpp_may_free_ask(device_answers);
        sdcpp_team_ask(cancel_requested);
    });
}

Run* run_current() {
    return static_cast<Run*>(sdcpp_thread_work());
}

RunScope::RunScope(Run* run) : outer(run_current()) {
    sdcpp_thread_work_set(run);
    preview_route(run);
}

RunScope::~RunScope() {
    sdcpp_thread_work_set(outer);
    preview_route(outer);
}

namespace {

ggml_status compute_here(Placement& placement, ggml_backend_t backend, ggml_cgraph* graph) {
    Run* run = run_current();
    if (run != nullptr && run->poll_cancelled()) {
        return GGML_STATUS_ABORTED;
    }
    note_computing(placement, graph);
    const KernelScope kernels(computes_fast(placement));
    // The CPU's threads ask by themselves (threads/team.h).
    const auto cancelled = [] { return cancel_requested(run_current()); };
    const bool whole = placement.runtime == nullptr || ggml_backend_is_cpu(backend);
    LaneGroup* const lanes = placement.lanes.get();
    const ggml_status status =
        stream_bound(placement)                         ? stream_compute(placement, graph, cancelled)
        : lanes != nullptr && lanes->has_side(graph) ? lanes->compute_both(backend)
        : whole                                         ? ggml_backend_graph_compute(backend, graph)
                : compute_in_parts(*placement.runtime, backend, graph, cancelled);
    if (lanes != nullptr) {
        lanes->note_computed(graph);
    }
    if (status == GGML_STATUS_ALLOC_FAILED) {
        throw_no_room(placement, "a graph", "operations");
    }
    if (status == GGML_STATUS_FAILED) {
        if (const std::string failure = sdcpp_team_failure(); !failure.empty()) {
            throw CheckFailed(failure);
        }
    }
    if (run != nullptr && run->callbacks.tap != nullptr && status == GGML_STATUS_SUCCESS &&
        ggml_graph_n_nodes(graph) > 0) {
        for (const ggml_tensor* output : outputs_of(placement, graph)) {
            tap_output(*run, output);
        }
    }
    return status;
}

}  // namespace

ggml_status graph_compute(Placement& placement, ggml_backend_t backend, ggml_cgraph* graph) {
    ggml_status status = GGML_STATUS_FAILED;
    on_caller([&] { status = compute_here(placement, backend, graph); });
    return status;
}

bool run_cancelled() {
    Run* run = run_current();
    if (run == nullptr || !run->cancelled) {
        return false;
    }
    run->stopping = true;
    return true;
}

void stop_if_cancelled() {
    if (run_cancelled()) {
        throw Cancelled();
    }
}

void phase_begin(const char* name) {
    if (Run* run = run_current()) {
        run->phase_begin(name);
    }
}

void sampling_step_begin(int step, int steps) {
    Run* const run = run_current();
    if (run == nullptr) {
        return;
    }
    run->sampling.step = std::abs(step);
    run->sampling.steps = steps;
    if (run->callbacks.preview != nullptr) {
        // The engine asks at each evaluation; the first ones of a step that takes several have a negative number.
        preview_route(run, step == -steps || (step > 0 && (step % run->callbacks.preview_interval == 0 || step == steps)));
    }
}

void bytes_read(uint64_t bytes) {
    if (Run* run = run_current()) {
        run->bytes_read = bytes;
    }
}

void load_wait(std::atomic<bool>& failed) {
    Run* run = run_current();
    if (run != nullptr && run->poll_cancelled()) {
        failed = true;
        return;
    }
    std::this_thread::sleep_for(load_interval);
}

void context_broken() {
    if (Run* run = run_current()) {
        run->half_changed = true;
    }
}

void error_record(const std::exception& error) noexcept {
    try {
        if (dynamic_cast<const Cancelled*>(&error) != nullptr) {
            return;
        }
        if (Run* run = run_current()) {
            run->failed(error);
        }
        LOG_ERROR("%s", error.what());
    } catch (...) {
        // Out of memory while reporting: the status alone tells.
    }
}

}  // namespace sdcpp

void sdcpp_log_set(sd_log_cb_t log, void* data) {
    process_log_data = data;
    process_log = log;
    sdcpp::routes_install();
}

sdcpp_run_t* sdcpp_run_new(const sdcpp_callbacks_t* callbacks) {
    return new (std::nothrow) Run(*callbacks);
}

const char* sdcpp_run_error(const sdcpp_run_t* run) {
    return run->error.c_str();
}

bool sdcpp_run_no_room(const sdcpp_run_t* run) {
    return run->is_without_room();
}

int sdcpp_run_phase_count(const sdcpp_run_t* run) {
    return static_cast<int>(run->phases.size());
}

bool sdcpp_run_phase_get(const sdcpp_run_t* run, int index, sdcpp_phase_t* phase) {
    if (phase == nullptr || index < 0 || index >= sdcpp_run_phase_count(run)) {
        return false;
    }
    *phase = run->phases[static_cast<size_t>(index)];
    return true;
}

bool sdcpp_run_lora_get(const sdcpp_run_t* run, int index, sdcpp_lora_t* lora) {
    if (lora == nullptr || index < 0 || static_cast<size_t>(index) >= run->loras.size()) {
        return false;
    }
    *lora = run->loras[static_cast<size_t>(index)];
    return true;
}

void sdcpp_run_pixels_free(sdcpp_run_t* run, int index) {
    if (index >= 0 && index < run->images.count && run->images.images != nullptr) {
        std::free(run->images.images[index].data);
        run->images.images[index].data = nullptr;
    }
}

void sdcpp_run_free(sdcpp_run_t* run) {
    delete run;
}
