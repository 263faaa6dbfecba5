// One call of the engine: who listens to it, whether it is cancelled, and how it ended. The thread that makes the call
// and the threads that the engine starts for it know their run, and everything the engine says or asks goes there.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "sdcpp/api/sdcpp.h"
#include "sdcpp/conversion/convert.h"
#include "sdcpp/placement/placement.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/values/finished.h"

namespace sdcpp {

// A failed engine check (GGML_ASSERT): the engine would end the process, we unwind to the entry point instead.
struct CheckFailed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What is being sampled.
struct Sampling {
    int picture = 0;  // how many pictures come before it, those of a first pass counted again
    int step = 0;     // the step that is under way, counted from 1
    int steps = 0;    // how many there are; 0 between two pictures
};

struct Images {
    sd_image_t* images = nullptr;
    int count = 0;
};

}  // namespace sdcpp

struct sdcpp_run {
    sdcpp_run() = default;
    explicit sdcpp_run(const sdcpp_callbacks_t& callbacks) : callbacks(callbacks) {}
    ~sdcpp_run();
    sdcpp_run(const sdcpp_run&) = delete;
    sdcpp_run& operator=(const sdcpp_run&) = delete;

    // Returns a copy of a text that lives as long as the run; NULL for NULL.
    const char* keep(const char* text);
    // Notes an exception; the first failed check stays the error.
    void failed(const std::exception& error);
    // Notes a failed engine check. One between two graphs, after the engine saw a cancel, is only its consequence: parts of
    // the engine check for the result that a cancelled graph does not leave.
    void check_failed(const char* message, bool in_graph);
    // Notes an error line of ggml's: backends say there what failed, and then fail a check that says less.
    void said(const char* line);
    // Tells whether a check has failed.
    bool is_broken();
    // Tells whether a device had no memory left.
    bool is_without_room() const { return failure == SDCPP_NO_ROOM; }
    // Tells whether the run is cancelled, after asking the poll callback when that was not long ago.
    bool poll_cancelled();
    void phase_begin(const char* name);
    void phase_end();
    // Tells the caller how far the phase is: steps that are done, of how many (0: not known), and how long one takes.
    void progressed(int done, int of, double seconds) const;
    sdcpp_status_t outcome(bool done) const;
    // Returns how many pictures are sampled for the last time; negative: in passes before.
    int sampled() const { return sampling.picture - pictures * (passes - 1); }

    static constexpr auto poll_interval = std::chrono::milliseconds(50);
    const sdcpp_callbacks_t callbacks{};
    std::atomic<bool> cancelled{false};
    std::atomic<bool> stopping{false};  // the engine has seen the cancel
    bool half_changed = false;  // weights were left half changed
    int pictures = 0;           // of a generation: how many are wanted
    int passes = 1;             // how often each is sampled
    sdcpp::Sampling sampling;
    int decoded = 0;            // how many are decoded
    uint64_t bytes_read = 0;    // of a model's files
    std::vector<sdcpp_phase_t> phases;
    std::vector<sdcpp_lora_t> loras;  // what became of those that were asked for
    std::function<void()> note_loras;  // fills them, while the call lasts
    std::vector<sdcpp::Converted> converted;  // what became of each tensor
    sdcpp::Images images;
    sdcpp::Finished finished;
    std::string error;  // guarded by the mutex while the call lasts

private:
    std::mutex mutex;
    std::deque<std::string> lines;          // the last ones of ggml's, guarded by the mutex
    sdcpp_status_t failure = SDCPP_FAILED;  // what the error is
    bool broken = false;
    std::deque<std::string> texts;
    std::chrono::steady_clock::time_point phase_start;
    std::chrono::steady_clock::time_point last_poll = std::chrono::steady_clock::now();
};

namespace sdcpp {

using Run = sdcpp_run;

// Sends what the engine says to the run of the thread that says it, and makes its checks unwind; once.
void routes_install();

// Runs a function that returns bool as a run's call on this thread, with exceptions and failed checks caught, and says
// how it ended. The function sees no placements of a call that this one is made inside of.
template <typename F>
sdcpp_status_t run_guarded(Run& run, F&& function) {
    routes_install();
    RunScope scope(&run);
    PlacementScope none(nullptr);
    const bool done = guard(function);
    run.phase_end();
    return run.outcome(done);
}

}  // namespace sdcpp
