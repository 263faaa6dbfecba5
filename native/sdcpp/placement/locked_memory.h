// Host memory of ours that a device reads by DMA. A backend's own host buffer takes, faults in and locks its pages in
// one call of one thread, which takes longer than reading the file. Here the memory is there at once; several threads fault
// it in and lock it, part by part, while the loader's threads read files into it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "ggml-backend.h"

namespace sdcpp {

// How a backend lets others' memory be locked, or NULL twice where it does not. Its registry offers them under these
// names: "sdcpp_memory_lock" and "sdcpp_memory_unlock".
struct LockFunctions {
    bool (*lock)(ggml_backend_dev_t dev, void* data, size_t bytes) = nullptr;
    void (*unlock)(ggml_backend_dev_t dev, void* data) = nullptr;
};
LockFunctions lock_functions(ggml_backend_dev_t dev);

// One part of it, which is locked whole: no copy may reach from what was locked by one call into what was by another.
class LockedMemory {
public:
    // Takes memory from the system, without its pages, which will be `large` ones: also where others write to it before
    // they are taken, as small ones are slower to lock and to give back. NULL where there is none.
    static std::unique_ptr<LockedMemory> take(ggml_backend_dev_t dev, const LockFunctions& functions, size_t bytes,
                                              bool large);
    // Unlocks it and gives it back.
    ~LockedMemory();
    LockedMemory(const LockedMemory&) = delete;
    LockedMemory& operator=(const LockedMemory&) = delete;

    char* data() const { return data_; }
    size_t bytes() const { return bytes_; }
    bool locked() const { return locked_; }
    // Takes its pages, until `stop`; what others write there meanwhile stays. `large` ends where the system has to look
    // for large ones.
    void fault_in(const std::atomic<bool>& stop, std::atomic<bool>& large) const;
    // Locks it for the device; false when that is refused.
    bool lock();
    void unlock();

private:
    LockedMemory(ggml_backend_dev_t dev, const LockFunctions& functions, char* data, size_t bytes, void* mapping,
                 size_t mapped);

    ggml_backend_dev_t const dev_;
    const LockFunctions functions_;
    char* const data_;
    const size_t bytes_;
    void* const mapping_;
    const size_t mapped_;
    bool locked_ = false;
};

// The parts of one buffer: they are locked all or none. Once one was refused no more of them is tried, as a refusal can
// make later ones fail.
struct LockedParts {
    // Gives them back, in several threads.
    ~LockedParts();

    std::vector<std::unique_ptr<LockedMemory>> parts;
    std::atomic<bool> refused{false};
    size_t left = 0;  // to be tried; the locker's
};

// Faults in and locks parts in threads of its own.
class MemoryLocker {
public:
    // Gives up what was not tried yet.
    ~MemoryLocker();
    // Tells whether pages are large ones.
    bool takes_large() const { return large_; }
    // Begins with some parts, which are given up before they end.
    void add(LockedParts& parts);
    // Waits until all of them were tried; true when they are locked, else none of them is.
    bool wait(LockedParts& parts);
    // Gives them up, and waits until no thread is at them.
    void give_up(LockedParts& parts);

private:
    struct Job {
        LockedParts* parts = nullptr;
        size_t index = 0;
    };
    void work(std::unique_lock<std::mutex>& lock);

    std::mutex mutex_;
    std::condition_variable tried_;
    std::deque<Job> jobs_;
    size_t working_ = 0;  // threads that have not ended
    std::atomic<bool> large_{true};  // pages
    std::vector<std::thread> threads_;
};

}  // namespace sdcpp
