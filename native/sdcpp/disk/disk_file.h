// A model's file that is read for as long as the model lives.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace sdcpp {

// A file of weights cannot be read any more, or is another one now; the message begins with "weights on disk: ".
struct DiskError : std::runtime_error {
    explicit DiskError(const std::string& what) : std::runtime_error("weights on disk: " + what) {}
};

// It is held open, so that a file that replaces it, or its deletion, changes nothing; what is written into it is found.
class DiskFile {
public:
    explicit DiskFile(const std::string& path);
    ~DiskFile();
    DiskFile(const DiskFile&) = delete;
    DiskFile& operator=(const DiskFile&) = delete;

    const std::string& path() const { return path_; }
    // Reads from a position, on any thread; throws DiskError. `past_cache`: without leaving it in the system's cache,
    // where the file system can, which takes less of the processors as well.
    void read(uint64_t position, void* to, size_t bytes, bool past_cache) const;
    // Throws DiskError when the file was written to since it was opened.
    void check() const;

private:
    struct Stamp {
        int64_t bytes, seconds, nanoseconds;
        bool operator==(const Stamp& other) const {
            return bytes == other.bytes && seconds == other.seconds && nanoseconds == other.nanoseconds;
        }
    };
    Stamp stamp() const;
    void read_cached(uint64_t position, char* to, size_t bytes) const;
    bool read_direct(uint64_t position, char* to, size_t bytes) const;

    const std::string path_;
    int file_ = -1;
    int direct_ = -1;  // the same file, for reading past the cache; -1: that is not possible
    mutable std::atomic<bool> may_be_direct_{true};
    Stamp opened_ = {};
};

}  // namespace sdcpp
