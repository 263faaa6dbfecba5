// What the patched engine lines call. Everything here is ours; a patch only adds a call to it.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>
#include <utility>

#include "ggml-backend.h"
#include "sdcpp/architecture/architecture.h"
#include "sdcpp/autoencoder/autoencoder.h"
#include "sdcpp/kernels/graph.h"
#include "sdcpp/lanes/lanes.h"
#include "sdcpp/placement/placement.h"
#include "sdcpp/placement/weights_copy.h"
#include "sdcpp/prompt/chunks.h"
#include "sdcpp/streaming/streaming.h"
#include "sdcpp/values/finished.h"
#include "sdcpp/values/finite.h"
#include "sdcpp/values/noise_levels.h"

struct sdcpp_run;

namespace sdcpp {

// Loads every backend module beside the engine library, once; never from the current directory.
void backends_load();

// Tells whether the CPU backend that was loaded uses a CPU feature; the names are ggml's own.
int cpu_feature(const char* name);

struct Placement;

// Computes a runner's graph on a backend, and stops it with GGML_STATUS_ABORTED when the run is cancelled.
ggml_status graph_compute(Placement& placement, ggml_backend_t backend, ggml_cgraph* graph);

// Tells whether the run is cancelled, so that what was read may be only half of it.
bool run_cancelled();

// Throws Cancelled when the run is cancelled, so that a thread leaves what takes long. Does not ask the poll callback.
void stop_if_cancelled();
struct Cancelled : std::runtime_error {
    Cancelled() : std::runtime_error("cancelled") {}
};

// The run that this thread works for; NULL: none.
::sdcpp_run* run_current();

// Makes a run the one that this thread works for, until the end of the scope.
class RunScope {
public:
    explicit RunScope(::sdcpp_run* run);
    ~RunScope();
    RunScope(const RunScope&) = delete;
    RunScope& operator=(const RunScope&) = delete;

private:
    ::sdcpp_run* const outer;
};

// Names the part of a generation that begins now; the time since the last one is booked on that one.
void phase_begin(const char* name);

// Notes the sampling step that begins, counted from 1 and of how many; of several evaluations of a step the first ones are
// negative.
void sampling_step_begin(int step, int steps);

// Notes how many bytes of a model's files were read so far.
void bytes_read(uint64_t bytes);

// Waits a moment for the threads that read a checkpoint, and makes them fail when the run is cancelled.
void load_wait(std::atomic<bool>& failed);

// Device memory or its budget is too small for a run; the message says what would do. The context works on.
struct NoRoom : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Records an exception as this run's error and logs it.
void error_record(const std::exception& error) noexcept;

// Runs a function that returns bool; an exception becomes an error line and false.
template <typename F>
bool guard(F&& function) noexcept {
    try {
        return function();
    } catch (const std::exception& error) {
        error_record(error);
    } catch (...) {
        error_record(std::runtime_error("unknown C++ exception"));
    }
    return false;
}

// Calls a function when its scope is left, by an exception too, unless it was dismissed; an exception of the function
// itself is recorded. (Exceptions cannot be counted instead: where each library has a C++ runtime of its own, one that
// comes from another library is not counted here.)
template <typename F>
class OnExit {
public:
    explicit OnExit(F function) : function(std::move(function)) {}
    ~OnExit() {
        if (!dismissed) {
            guard([&] {
                function();
                return true;
            });
        }
    }
    OnExit(const OnExit&) = delete;
    OnExit& operator=(const OnExit&) = delete;
    void dismiss() { dismissed = true; }

private:
    F function;
    bool dismissed = false;
};

// Says that a context can draw no more: what failed left its weights half changed.
void context_broken();

// Wraps the function of a thread that is started for this thread's run: it works for the same run, and an exception sets
// failed instead of ending the process.
template <typename F>
std::function<void()> guard_worker(std::atomic<bool>& failed, F function) {
    return [&failed, function, run = run_current()]() mutable {
        const RunScope scope(run);
        if (!guard([&] { function(); return true; })) {
            failed = true;
        }
    };
}

}  // namespace sdcpp
