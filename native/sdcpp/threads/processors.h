// Which processors the threads of a team run on. Where another program keeps one from its processor in the middle of
// what the others wait for, it would hold them up for a slice of the scheduler's time, some milliseconds; and where two
// of them share a processor, the other program has one to itself. Both are mended by moving a thread; none is bound to
// where it goes, but may go on to use all processors that it might before.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace sdcpp {

// A thread as others see it.
class Runner {
public:
    // Makes it the calling thread.
    void enter();
    // Notes the processor that the calling thread, which it is, runs on; true when that is another than before.
    bool note();
    // Returns the processor that was noted last.
    int place() const { return processor.load(std::memory_order_relaxed); }
    // Returns for how many nanoseconds it has run; below zero: nobody knows.
    int64_t time() const;
    // Moves it to the calling thread's processor.
    bool pull() const;

private:
    int thread = 0;
    int clock = 0;
    std::atomic<int> processor{-1};
};

// Moves the calling thread to a processor.
bool go_to(int processor);
// Moves the calling thread to the next processor that is none of some.
bool go_beside(const std::vector<int>& taken);

}  // namespace sdcpp
