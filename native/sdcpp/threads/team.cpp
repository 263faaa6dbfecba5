#include "sdcpp/threads/team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "sdcpp/kernels/policy.h"
#include "sdcpp/threads/pieces.h"
#include "sdcpp/threads/processors.h"
#include "sdcpp/threads/profile.h"

namespace {

using Clock = std::chrono::steady_clock;

// How long a thread looks for the others before it sleeps: longer than threads that all run are apart at most barriers.
// Where one does not run since others want its processor, looking costs the picture its own: each wait that ends in
// sleep halves the time, and each that does not adds to it again.
constexpr int most_spin = 50;  // microseconds
constexpr int least_spin = 1;
constexpr int spin_gain = 4;
constexpr int looks_per_clock = 32;
// When a thread that sleeps first looks whether one that it waits for runs; then after twice the time, and so on.
constexpr auto first_look = std::chrono::microseconds(100);
// One that has run for less than this part of the time is kept from its processor.
constexpr int running_part = 4;
// How often the thread that called asks whether the graph is still wanted, while it waits for the others.
constexpr auto ask_interval = std::chrono::milliseconds(50);
// How many looks there are to a question: some operations look every microsecond.
constexpr unsigned looks_per_question = 4;

// Where a node's number begins in the word that gives out its pieces.
constexpr int piece_bits = 32;
constexpr uint64_t most_pieces = (uint64_t{1} << piece_bits) - 1;

// Thrown by the thread that fails, and by those that leave with it.
struct Left {};

void relax() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    __builtin_ia32_pause();
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
    __asm__ volatile("yield" ::: "memory");
#endif
}

thread_local void* work = nullptr;
thread_local sdcpp_team* in_node = nullptr;
thread_local uint32_t node_number = 0;   // of those that this thread has begun of a graph
thread_local bool takes_pieces = false;  // of the node that it is in
thread_local unsigned looks = 0;
thread_local std::string failure;

std::atomic<sdcpp_team_unwanted_t> unwanted{nullptr};

// A thread of a team.
struct Member {
    std::atomic<bool> works{false};  // in a graph, and does not wait
    bool slept = false;              // since it looked where it runs
    sdcpp::Runner runner;
};

thread_local Member* me = nullptr;

}  // namespace

struct sdcpp_team {
    // Looks for a while whether a condition holds, then sleeps until it does.
    template <typename F>
    void wait(F&& holds) {
        const int spin_now = spin.load(std::memory_order_relaxed);
        const auto end = Clock::now() + std::chrono::microseconds(spin_now);
        do {
            for (int i = 0; i < looks_per_clock; ++i) {
                if (holds()) {
                    if (spin_now < most_spin) {
                        spin.store(std::min(spin_now + spin_gain, most_spin), std::memory_order_relaxed);
                    }
                    return;
                }
                relax();
            }
        } while (Clock::now() < end);
        spin.store(std::max(spin_now / 2, least_spin), std::memory_order_relaxed);
        me->works.store(false);
        sleep(holds);
        me->works.store(true);
        me->slept = true;
    }

    // Sleeps until a condition holds. Meanwhile a thread that is kept from its processor gets this one's.
    template <typename F>
    void sleep(F&& holds) {
        std::unique_lock<std::mutex> lock(mutex);
        sleepers.fetch_add(1);
        const Member* other = worker_after(nullptr);
        int64_t time = other != nullptr ? other->runner.time() : -1;
        std::chrono::microseconds interval = first_look;
        while (!woken.wait_for(lock, interval, holds)) {
            const std::chrono::nanoseconds least = interval / running_part;
            const bool stands = time >= 0 && other->works.load() && other->runner.time() - time < least.count();
            // It does not leave the graph, and end, while the mutex is held.
            const bool moved = stands && other->runner.pull();
            const int left = moved ? other->runner.place() : -1;
            other = worker_after(other);
            time = other != nullptr ? other->runner.time() : -1;
            interval = std::min<std::chrono::microseconds>(2 * interval, ask_interval);
            lock.unlock();
            if (moved) {
                sdcpp::go_to(left);
            }
            ask();
            lock.lock();
        }
        sleepers.fetch_sub(1);
    }

    // Returns the next thread after one that works, or NULL.
    const Member* worker_after(const Member* one) const {
        const size_t count = members.size();
        const size_t begin = one != nullptr ? static_cast<size_t>(one - members.data()) + 1 : 0;
        for (size_t i = begin; i < begin + count; ++i) {
            const Member& member = members[i % count];
            if (&member != me && member.works.load()) {
                return &member;
            }
        }
        return nullptr;
    }

    // Lets this thread go elsewhere when it was woken or moved to a processor that another of the team works on: the
    // scheduler leaves both there, beside others' on processors of their own.
    void spread() const {
        if (!me->runner.note() && !std::exchange(me->slept, false)) {
            return;
        }
        std::vector<int> taken;
        for (const Member& member : members) {
            if (&member != me && member.works.load()) {
                taken.push_back(member.runner.place());
            }
        }
        if (std::find(taken.begin(), taken.end(), me->runner.place()) != taken.end() && sdcpp::go_beside(taken)) {
            me->runner.note();
        }
    }

    // Wakes who sleeps, after what they wait for was changed.
    void wake() {
        if (sleepers.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex);
            woken.notify_all();
        }
    }

    // Returns the number of the first node that is not computed.
    uint32_t current() const { return static_cast<uint32_t>(given.load() >> piece_bits); }

    // Waits until a node is computed.
    bool await(uint32_t node) {
        if (current() == node) {
            wait([&] { return current() != node || failed.load(); });
        }
        return !failed.load();
    }

    // Counts a piece of a node that is done; with the last one the next node begins.
    void finish(uint32_t node, int64_t count) {
        if (finished.fetch_add(1) + 1 == count) {
            finished.store(0);
            given.store((static_cast<uint64_t>(node) + 1) << piece_bits);
            wake();
        }
    }

    bool meet() {
        if (threads > 1) {
            const int round = rounds.load(std::memory_order_relaxed);
            if (arrived.fetch_add(1) + 1 == threads) {
                arrived.store(0, std::memory_order_relaxed);
                rounds.fetch_add(1);
                wake();
            } else {
                wait([&] { return rounds.load() != round || failed.load(); });
            }
        }
        return !failed.load();
    }

    void fail(const char* message) { end(GGML_STATUS_FAILED, message); }

    // Ends the graph; the first who does says how.
    void end(ggml_status how, const char* message) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            if (!failed.load()) {
                status = how;
                error = message;
            }
            failed.store(true);
        }
        wake();
    }

    // Ends the graph when it is wanted no more; asked by the thread that called alone.
    void ask() {
        const sdcpp_team_unwanted_t is_unwanted = unwanted.load(std::memory_order_relaxed);
        if (is_unwanted != nullptr && std::this_thread::get_id() == caller && is_unwanted(work)) {
            end(GGML_STATUS_ABORTED, "");
        }
    }

    int threads = 1;
    std::vector<Member> members;  // as many
    std::atomic<size_t> entered{0};
    void* work = nullptr;
    bool fast = false;  // its kernel policy
    std::thread::id caller;
    ggml_status status = GGML_STATUS_SUCCESS;  // guarded by the mutex
    std::string error;                         // guarded by the mutex
    std::atomic<bool> failed{false};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> rounds{0};
    std::atomic<int> left{0};
    std::atomic<int> sleepers{0};
    std::atomic<int> spin{most_spin};  // microseconds
    // The number of the node that is computed, and how many of its pieces have been given out: one that comes late
    // takes none of a later one.
    alignas(64) std::atomic<uint64_t> given{0};
    alignas(64) std::atomic<int64_t> finished{0};  // of its pieces
    std::mutex mutex;
    std::condition_variable woken;
};

sdcpp_team* sdcpp_team_new(void) {
    return new sdcpp_team;
}

void sdcpp_team_free(sdcpp_team* team) {
    delete team;
}

void sdcpp_team_begin(sdcpp_team* team, int threads) {
    team->threads = threads;
    team->members = std::vector<Member>(static_cast<size_t>(threads));
    team->entered.store(0);
    team->work = work;
    team->fast = sdcpp_kernels_fast();
    team->caller = std::this_thread::get_id();
    team->error.clear();
    team->failed.store(false);
    team->arrived.store(0);
    team->left.store(0);
    team->finished.store(0);
    team->given.store(uint64_t{1} << piece_bits);
    failure.clear();
}

void sdcpp_team_enter(sdcpp_team* team) {
    work = team->work;
    node_number = 0;
    me = &team->members[team->entered.fetch_add(1)];
    me->runner.enter();
    me->works.store(true);
    sdcpp_kernels_fast_set(team->fast);
}

void sdcpp_team_leave(sdcpp_team* team, bool caller) {
    if (!caller) {
        work = nullptr;
        {
            const std::lock_guard<std::mutex> lock(team->mutex);
            me->works.store(false);
        }
        team->left.fetch_add(1);
        team->wake();
        return;
    }
    team->wait([&] { return team->left.load() == team->threads - 1; });
    sdcpp::profile_node(nullptr);
    if (team->failed.load()) {
        failure = team->error;
    }
}

bool sdcpp_team_compute(sdcpp_team* team, sdcpp_team_node_t compute, ggml_compute_params* params, ggml_tensor* node) {
    const uint32_t number = ++node_number;
    if (params->ith == 0) {
        sdcpp::profile_node(node);
    }
    if (team->current() != number) {
        return !team->failed.load();  // the others have computed it
    }
    sdcpp_team* const outer = std::exchange(in_node, team);
    takes_pieces = false;
    try {
        sdcpp::Pieces pieces(*params, *node);
        while (ggml_compute_params* const piece = pieces.next()) {
            team->ask();
            if (team->failed.load(std::memory_order_relaxed)) {
                break;
            }
            compute(piece, node);
        }
        if (!takes_pieces && !team->failed.load()) {
            team->finish(number, team->threads);  // each thread has its own
        }
    } catch (const Left&) {
    } catch (const std::exception& error) {
        team->fail(error.what());
    } catch (...) {
        team->fail("unknown C++ exception");
    }
    in_node = outer;
    return !team->failed.load();
}

int64_t sdcpp_team_take(int64_t count) {
    if (count == 0) {
        return -1;
    }
    takes_pieces = true;
    in_node->spread();
    uint64_t given = in_node->given.load();
    do {
        if (given >> piece_bits != node_number || static_cast<int64_t>(given & most_pieces) >= count) {
            return -1;
        }
    } while (!in_node->given.compare_exchange_weak(given, given + 1));
    return static_cast<int64_t>(given & most_pieces);
}

void sdcpp_team_finish(int64_t count) {
    in_node->finish(node_number, count);
}

bool sdcpp_team_meet(sdcpp_team* team) {
    return team->await(node_number);
}

void sdcpp_team_meet_inside(sdcpp_team* team) {
    if (!team->meet()) {
        throw Left{};
    }
}

ggml_status sdcpp_team_status(const sdcpp_team* team, ggml_status status) {
    return team->failed.load() ? team->status : status;
}

sdcpp_team_unwanted_t sdcpp_team_ask(sdcpp_team_unwanted_t is_unwanted) {
    return unwanted.exchange(is_unwanted);
}

void sdcpp_team_look(void) {
    sdcpp_team* const team = in_node;
    if (team == nullptr) {
        return;
    }
    if (++looks % looks_per_question == 0) {
        team->ask();
    }
    if (team->failed.load(std::memory_order_relaxed)) {
        throw Left{};
    }
}

void sdcpp_team_fail(const char* message) {
    if (in_node != nullptr) {
        in_node->fail(message);
        throw Left{};
    }
}

sdcpp_team* sdcpp_team_inside(void) {
    return in_node;
}

const char* sdcpp_team_failure(void) {
    static thread_local std::string said;
    said = std::exchange(failure, {});
    return said.c_str();
}

void* sdcpp_thread_work(void) {
    return work;
}

void sdcpp_thread_work_set(void* value) {
    work = value;
}
