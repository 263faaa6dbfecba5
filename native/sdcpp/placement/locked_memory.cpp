#include "sdcpp/placement/locked_memory.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sdcpp {

namespace {

constexpr size_t most_threads = 8;  // more of them wait for one another in the system
constexpr size_t large_page = 2u << 20;
constexpr size_t at_once = 4 * large_page;  // that is faulted in between two looks whether to stop
// Bytes a second. Small pages come faster than large ones that the system makes by moving others about.
constexpr double slowest_large = 1e9;

size_t threads_for(size_t jobs) {
    return std::min({jobs, most_threads, static_cast<size_t>(std::max(1u, std::thread::hardware_concurrency()))});
}

// Runs a function, which shares some jobs with itself, in several threads; in as many as there can be.
template <typename F>
void in_threads(size_t jobs, F&& work) {
    std::vector<std::thread> threads;
    try {
        while (threads.size() + 1 < threads_for(jobs)) {
            threads.emplace_back(work);
        }
    } catch (const std::system_error&) {
    }
    work();
    for (std::thread& thread : threads) {
        thread.join();
    }
}

}  // namespace

LockFunctions lock_functions(ggml_backend_dev_t dev) {
    LockFunctions functions;
#ifdef __linux__
    ggml_backend_reg_t const reg = ggml_backend_dev_backend_reg(dev);
    functions.lock = reinterpret_cast<decltype(functions.lock)>(
        ggml_backend_reg_get_proc_address(reg, "sdcpp_memory_lock"));
    functions.unlock = reinterpret_cast<decltype(functions.unlock)>(
        ggml_backend_reg_get_proc_address(reg, "sdcpp_memory_unlock"));
#else
    (void)dev;
#endif
    return functions.lock != nullptr && functions.unlock != nullptr ? functions : LockFunctions{};
}

LockedMemory::LockedMemory(ggml_backend_dev_t dev, const LockFunctions& functions, char* data, size_t bytes,
                           void* mapping, size_t mapped)
    : dev_(dev), functions_(functions), data_(data), bytes_(bytes), mapping_(mapping), mapped_(mapped) {}

std::unique_ptr<LockedMemory> LockedMemory::take(ggml_backend_dev_t dev, const LockFunctions& functions, size_t bytes,
                                                 bool large) {
#ifdef __linux__
    // It begins at a large page, and a page behind it keeps its neighbour from being taken for its continuation.
    const size_t mapped = bytes + 2 * large_page;
    void* const mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
        return nullptr;
    }
    char* const data = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(mapping) + large_page - 1) / large_page *
                                               large_page);
    // A child of fork() would get copies of locked pages.
    (void)madvise(mapping, mapped, MADV_DONTFORK);
    if (large) {
        (void)madvise(data, bytes, MADV_HUGEPAGE);
    }
    return std::unique_ptr<LockedMemory>(new LockedMemory(dev, functions, data, bytes, mapping, mapped));
#else
    (void)dev;
    (void)functions;
    (void)bytes;
    (void)large;
    return nullptr;
#endif
}

LockedMemory::~LockedMemory() {
    unlock();
#ifdef __linux__
    munmap(mapping_, mapped_);
#endif
}

void LockedMemory::fault_in(const std::atomic<bool>& stop, std::atomic<bool>& large) const {
#ifdef __linux__
#ifndef MADV_POPULATE_WRITE
    constexpr int MADV_POPULATE_WRITE = 23;
#endif
    bool small = false;
    for (size_t at = 0; at < bytes_ && !stop; at += at_once) {
        const size_t bytes = std::min(at_once, bytes_ - at);
        if (!large && !std::exchange(small, true)) {
            (void)madvise(data_ + at, bytes_ - at, MADV_NOHUGEPAGE);
        }
        const auto begin = std::chrono::steady_clock::now();
        // Before Linux 5.14 the pages are taken when they are locked or written.
        if (madvise(data_ + at, bytes, MADV_POPULATE_WRITE) != 0) {
            return;
        }
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        if (!small && seconds.count() * slowest_large > static_cast<double>(bytes)) {
            large = false;
        }
    }
#else
    (void)stop;
    (void)large;
#endif
}

bool LockedMemory::lock() {
    return locked_ = functions_.lock(dev_, data_, bytes_);
}

void LockedMemory::unlock() {
    if (std::exchange(locked_, false)) {
        functions_.unlock(dev_, data_);
    }
}

LockedParts::~LockedParts() {
    std::atomic<size_t> next{0};
    in_threads(parts.size(), [&] {
        for (size_t i = next++; i < parts.size(); i = next++) {
            parts[i].reset();
        }
    });
}

MemoryLocker::~MemoryLocker() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        for (const Job& job : jobs_) {
            job.parts->refused = true;
        }
    }
    for (std::thread& thread : threads_) {
        thread.join();
    }
}

void MemoryLocker::add(LockedParts& parts) {
    std::unique_lock<std::mutex> lock(mutex_);
    parts.left = parts.parts.size();
    for (size_t i = 0; i < parts.left; ++i) {
        jobs_.push_back({&parts, i});
    }
    try {
        while (working_ < threads_for(jobs_.size())) {
            threads_.emplace_back([this] {
                std::unique_lock<std::mutex> own(mutex_);
                work(own);
                --working_;
            });
            ++working_;
        }
    } catch (const std::system_error&) {
        // Those there are, and who waits, do all.
    }
}

void MemoryLocker::work(std::unique_lock<std::mutex>& lock) {
    while (!jobs_.empty()) {
        const Job job = jobs_.front();
        jobs_.pop_front();
        lock.unlock();
        LockedMemory& part = *job.parts->parts[job.index];
        part.fault_in(job.parts->refused, large_);
        if (!job.parts->refused && !part.lock()) {
            job.parts->refused = true;
        }
        lock.lock();
        --job.parts->left;
        tried_.notify_all();
    }
}

bool MemoryLocker::wait(LockedParts& parts) {
    std::unique_lock<std::mutex> lock(mutex_);
    work(lock);
    tried_.wait(lock, [&] { return parts.left == 0; });
    if (parts.refused) {
        for (const auto& part : parts.parts) {
            part->unlock();
        }
    }
    return !parts.refused;
}

void MemoryLocker::give_up(LockedParts& parts) {
    parts.refused = true;
    std::unique_lock<std::mutex> lock(mutex_);
    for (auto job = jobs_.begin(); job != jobs_.end();) {
        if (job->parts == &parts) {
            --parts.left;
            job = jobs_.erase(job);
        } else {
            ++job;
        }
    }
    tried_.wait(lock, [&] { return parts.left == 0; });
}

}  // namespace sdcpp
