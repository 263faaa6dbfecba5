#include "sdcpp/api/turns.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>
#include <utility>

#include "sdcpp/placement/runner_placement.h"
#include "util.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace {

using namespace sdcpp;

struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::list<Turn*> waiting;             // in their order
    std::list<const Claim*> taken;
    std::vector<Run*> active;             // runs whose claim is taken
    std::list<std::shared_ptr<Context>> leftover;  // closed, to be freed when their devices are free
    std::vector<std::weak_ptr<Context>> contexts;
    bool exiting = false;
    std::thread::id exiting_on;
};

State& state() {
    // Never destroyed: threads that the interpreter does not wait for may be in it when the process ends.
    static State* const instance = new State;
    return *instance;
}

std::atomic<bool> used{false};
std::atomic<bool> in_child{false};
thread_local const Turn* thread_turn = nullptr;

bool shares(const Claim& one, const Claim& other) {
    return one.all || other.all ||
           std::find_first_of(one.devices.begin(), one.devices.end(), other.devices.begin(), other.devices.end()) !=
               one.devices.end();
}

// Keeps a thread here for good that the interpreter does not wait for, once that goes away: what it would return or raise
// there could only be printed by an interpreter that is half gone.
void stay_at_exit(State& all, std::unique_lock<std::mutex>& lock) {
    while (all.exiting && all.exiting_on != std::this_thread::get_id()) {
        all.changed.wait(lock);
    }
}

bool is_free(const State& all, const Claim& claim) {
    return std::none_of(all.taken.begin(), all.taken.end(), [&](const Claim* taken) { return shares(*taken, claim); });
}

template <typename T, typename V>
void erase(T& items, const V& item) {
    items.erase(std::remove(items.begin(), items.end(), item), items.end());
}

// Frees the leftover contexts whose devices are free. The lock is held, except while one of them is freed.
void sweep(State& all, std::unique_lock<std::mutex>& lock) {
    for (auto next = all.leftover.begin(); next != all.leftover.end();) {
        const std::shared_ptr<Context> context = *next;
        if (!context->runs.empty() || !is_free(all, context->claim)) {
            ++next;
            continue;
        }
        all.leftover.erase(next);
        const Claim claim = context->claim;
        all.taken.push_back(&claim);
        lock.unlock();
        {
            Run run;  // without callbacks: what it says belongs to no call
            context_unload(*context, run);
        }
        lock.lock();
        erase(all.taken, &claim);
        all.changed.notify_all();
        next = all.leftover.begin();
    }
}

// Asks the devices of a context whether they still work: where one does not, freeing its memory would fail a check in a
// destructor, which cannot unwind.
bool devices_work(Run& run, const Placements& placements) {
    RunScope scope(&run);
    return guard([&] {
        placements.synchronize();
        return true;
    });
}

}  // namespace

namespace sdcpp {

Turn::Turn(Run& run, const Claim& claim, std::shared_ptr<Context> context, bool closing)
    : run(&run), claim(claim), context(std::move(context)), outer_(thread_turn), status_(take(closing)) {
    if (status_ == SDCPP_OK) {
        thread_turn = this;
    }
}

sdcpp_status_t Turn::take(bool closing) {
    if (forked()) {
        return SDCPP_FORKED;
    }
    used = true;
    for (const Turn* outer = outer_; outer != nullptr; outer = outer->outer_) {
        if (shares(outer->claim, claim)) {
            return SDCPP_INSIDE;
        }
    }
    State& all = state();
    std::unique_lock<std::mutex> lock(all.mutex);
    all.waiting.insert(closing ? all.waiting.begin() : all.waiting.end(), this);
    if (context && !closing) {
        context->runs.push_back(run);
    }
    const auto may_go = [&] {
        for (const Turn* earlier : all.waiting) {
            if (earlier == this) {
                return is_free(all, claim);
            }
            if (shares(earlier->claim, claim)) {
                return false;
            }
        }
        return false;
    };
    sdcpp_status_t status = SDCPP_OK;
    while (true) {
        status = all.exiting                               ? SDCPP_EXITING
                 : context && context->closed && !closing    ? SDCPP_CLOSED
                 : run->cancelled                          ? SDCPP_CANCELLED
                                                           : SDCPP_OK;
        if (status != SDCPP_OK || may_go()) {
            break;
        }
        if (outer_ != nullptr) {
            status = SDCPP_INSIDE;  // whoever has the device may be waiting for ours
            break;
        }
        all.changed.wait_for(lock, Run::poll_interval);
        lock.unlock();
        run->poll_cancelled();
        lock.lock();
    }
    erase(all.waiting, this);
    if (status == SDCPP_OK) {
        all.taken.push_back(&claim);
        all.active.push_back(run);
    } else {
        if (context) {
            erase(context->runs, run);
        }
        sweep(all, lock);
    }
    all.changed.notify_all();
    if (status != SDCPP_OK && outer_ == nullptr) {
        stay_at_exit(all, lock);
    }
    return status;
}

Turn::~Turn() {
    if (status_ != SDCPP_OK) {
        return;
    }
    thread_turn = outer_;
    State& all = state();
    std::unique_lock<std::mutex> lock(all.mutex);
    erase(all.taken, &claim);
    erase(all.active, run);
    if (context) {
        erase(context->runs, run);
    }
    all.changed.notify_all();
    sweep(all, lock);
    if (outer_ == nullptr) {
        stay_at_exit(all, lock);
    }
}

std::shared_ptr<Context> context_new() {
    auto context = std::make_shared<Context>();
    State& all = state();
    std::lock_guard<std::mutex> lock(all.mutex);
    all.contexts.erase(std::remove_if(all.contexts.begin(), all.contexts.end(), [](const auto& at) { return at.expired(); }),
                       all.contexts.end());
    all.contexts.push_back(context);
    return context;
}

Claim context_claim(const Context& context) {
    State& all = state();
    std::lock_guard<std::mutex> lock(all.mutex);
    return context.claim;
}

void context_claim(Context& context, Claim claim) {
    State& all = state();
    std::lock_guard<std::mutex> lock(all.mutex);
    context.claim = std::move(claim);
}

bool context_close(Context& context) {
    State& all = state();
    std::lock_guard<std::mutex> lock(all.mutex);
    all.changed.notify_all();
    return !std::exchange(context.closed, true);
}

bool context_closed(const Context& context) {
    State& all = state();
    std::lock_guard<std::mutex> lock(all.mutex);
    return context.closed;
}

void context_cancel(Context& context) {
    State& all = state();
    std::lock_guard<std::mutex> lock(all.mutex);
    for (Run* run : context.runs) {
        run->cancelled = true;
    }
    all.changed.notify_all();
}

void context_free_later(std::shared_ptr<Context> context) {
    State& all = state();
    std::unique_lock<std::mutex> lock(all.mutex);
    all.leftover.push_back(std::move(context));
    sweep(all, lock);
}

void context_unload(Context& context, Run& run) {
    const auto placements = std::exchange(context.placements, nullptr);
    sd_ctx_t* loaded = std::exchange(context.loaded, nullptr);
    auto upscaler = std::exchange(context.upscaler, nullptr);
    if (placements == nullptr) {
        return;
    }
    if (!devices_work(run, *placements)) {
        LOG_ERROR("a device of the model does not answer any more; its memory is given up, and free again when the "
                  "process ends");
        static auto* const given_up = new std::vector<std::pair<std::shared_ptr<Placements>, std::shared_ptr<Upscaler>>>;
        given_up->emplace_back(placements, std::move(upscaler));
        return;
    }
    RunScope scope(&run);
    guard([&] {
        upscaler.reset();
        if (loaded != nullptr) {
            free_sd_ctx(loaded);
        }
        return true;
    });
#ifdef __GLIBC__
    malloc_trim(0);  // else it keeps hundreds of MB of a large model that was opened and closed
#endif
}

bool forked() {
    return in_child;
}

}  // namespace sdcpp

void sdcpp_run_cancel(sdcpp_run_t* run) {
    // No lock: a run that waits for its turn looks at least every 50 ms.
    run->cancelled = true;
}

void sdcpp_forked(void) {
    in_child = used.load();
}

bool sdcpp_is_forked(void) {
    return sdcpp::forked();
}

void sdcpp_stay_at_exit(void) {
    if (forked()) {
        return;
    }
    State& all = state();
    std::unique_lock<std::mutex> lock(all.mutex);
    stay_at_exit(all, lock);
}

bool sdcpp_exit(int milliseconds) {
    if (forked()) {
        return true;
    }
    State& all = state();
    std::unique_lock<std::mutex> lock(all.mutex);
    all.exiting = true;
    all.exiting_on = std::this_thread::get_id();
    for (Run* run : all.active) {
        run->cancelled = true;
    }
    all.changed.notify_all();
    const bool done = all.changed.wait_for(lock, std::chrono::milliseconds(milliseconds),
                                           [&] { return all.taken.empty() && all.waiting.empty(); });
    if (done) {
        for (const auto& known : all.contexts) {
            if (auto context = known.lock(); context && !std::exchange(context->closed, true)) {
                all.leftover.push_back(context);
            }
        }
        sweep(all, lock);
    }
    return done;
}
