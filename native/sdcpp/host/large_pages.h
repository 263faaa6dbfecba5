// Large pages for large memory: the system takes a gigabyte of small ones back in a quarter of a second, or in some
// seconds where it is busy, and a cancel waits for that. What is smaller is left as it is: large pages can take the system
// longer to find.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sdcpp {

// Asks the system to use large pages for memory that was not touched yet, where it is large enough for some.
inline void take_large_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t page = 2u << 20;
    constexpr size_t worth_it = 1u << 30;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
    if (bytes >= worth_it) {
        // Where the system has none, the memory stays as it is.
        (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    }
#else
    (void)memory;
    (void)bytes;
#endif
}

}  // namespace sdcpp
