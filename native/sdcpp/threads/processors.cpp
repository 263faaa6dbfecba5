#include "sdcpp/threads/processors.h"

#ifdef __linux__

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

namespace {

// Returns the processors that a thread may use; none where nobody knows.
cpu_set_t processors_of(int thread) {
    cpu_set_t set;
    if (sched_getaffinity(thread, sizeof(set), &set) != 0) {
        CPU_ZERO(&set);
    }
    return set;
}

// Moves a thread to a processor that it may use, and leaves it all of those that it might use before.
bool move(int thread, int processor) {
    const cpu_set_t usual = processors_of(thread);
    if (processor < 0 || processor >= CPU_SETSIZE || CPU_COUNT(&usual) < 2 || CPU_ISSET(processor, &usual) == 0) {
        return false;
    }
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    if (sched_setaffinity(thread, sizeof(one), &one) != 0) {
        return false;
    }
    const cpu_set_t now = processors_of(thread);
    if (CPU_EQUAL(&now, &one) != 0) {  // or somebody has chosen others meanwhile
        sched_setaffinity(thread, sizeof(usual), &usual);
    }
    return true;
}

}  // namespace

namespace sdcpp {

void Runner::enter() {
    clockid_t its_clock = 0;
    clock = pthread_getcpuclockid(pthread_self(), &its_clock) == 0 ? its_clock : 0;
    thread = static_cast<int>(syscall(SYS_gettid));
    note();
}

bool Runner::note() {
    const int now = sched_getcpu();
    const bool other = now != place();
    processor.store(now, std::memory_order_relaxed);
    return other;
}

int64_t Runner::time() const {
    timespec now{};
    const bool known = clock != 0 && clock_gettime(clock, &now) == 0;
    return known ? static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec : -1;
}

bool Runner::pull() const {
    return move(thread, sched_getcpu());
}

bool go_to(int processor) {
    return move(0, processor);
}

bool go_beside(const std::vector<int>& taken) {
    const cpu_set_t all = processors_of(0);
    const int here = std::max(sched_getcpu(), 0);
    for (int i = 1; i < CPU_SETSIZE; ++i) {
        const int processor = (here + i) % CPU_SETSIZE;
        if (CPU_ISSET(processor, &all) != 0 && std::find(taken.begin(), taken.end(), processor) == taken.end()) {
            return move(0, processor);
        }
    }
    return false;
}

}  // namespace sdcpp

#else  // where threads cannot be moved

namespace sdcpp {

void Runner::enter() {}

bool Runner::note() {
    return false;
}

int64_t Runner::time() const {
    return -1;
}

bool Runner::pull() const {
    return false;
}

bool go_to(int) {
    return false;
}

bool go_beside(const std::vector<int>&) {
    return false;
}

}  // namespace sdcpp

#endif
