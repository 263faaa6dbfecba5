// Unpacks a part of a deflated zip entry.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace sdcpp::files {

// Reads count bytes from a position of a file; throws when it cannot.
using ReadAt = std::function<void(uint64_t position, void* to, size_t count)>;

// Unpacks an entry of packed bytes at position, and keeps count bytes from its first one on. Throws FileError when the
// entry is damaged or shorter than that.
void inflate(const ReadAt& read, uint64_t position, uint64_t packed, uint64_t first, void* to, size_t count);

}  // namespace sdcpp::files
