#include "sdcpp/disk/disk_file.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#ifndef _WIN32
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace sdcpp {

#ifndef _WIN32

namespace {

constexpr size_t sector = 4096;            // what is read past the cache begins and ends at multiples of this
constexpr size_t direct_bytes = 4u << 20;  // that are read so at once

// Memory of a thread that reads past the cache.
char* direct_memory() {
    struct Free {
        void operator()(char* memory) const { std::free(memory); }
    };
    thread_local const std::unique_ptr<char, Free> memory(
        static_cast<char*>(std::aligned_alloc(sector, direct_bytes + 2 * sector)));
    return memory.get();
}

// Opens a file that is open once more, for reading past the cache, also when it was replaced meanwhile.
int open_direct(int file) {
#ifdef O_DIRECT
    const std::string again = "/proc/self/fd/" + std::to_string(file);
    return open(again.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
#else
    return -1;
#endif
}

}  // namespace

DiskFile::DiskFile(const std::string& path) : path_(path), file_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (file_ < 0) {
        throw DiskError(path + " cannot be opened: " + std::strerror(errno));
    }
    opened_ = stamp();
    direct_ = open_direct(file_);
}

DiskFile::~DiskFile() {
    for (const int file : {file_, direct_}) {
        if (file >= 0) {
            close(file);
        }
    }
}

void DiskFile::read(uint64_t position, void* to, size_t bytes, bool past_cache) const {
    auto* const place = static_cast<char*>(to);
    for (size_t done = 0; done < bytes;) {
        const size_t some = std::min(direct_bytes, bytes - done);
        if (!past_cache || !read_direct(position + done, place + done, some)) {
            read_cached(position + done, place + done, some);
        }
        done += some;
    }
}

// Reads no more than direct_bytes past the cache; false where that is not possible, or did not give all of them.
bool DiskFile::read_direct(uint64_t position, char* to, size_t bytes) const {
    char* const memory = direct_ >= 0 && may_be_direct_ ? direct_memory() : nullptr;
    if (memory == nullptr) {
        return false;
    }
    const uint64_t begin = position / sector * sector;
    const size_t before = static_cast<size_t>(position - begin);
    const size_t all = (before + bytes + sector - 1) / sector * sector;
    for (size_t done = 0; done < before + bytes;) {
        const ssize_t some = pread(direct_, memory + done, all - done, static_cast<off_t>(begin + done));
        if (some < 0 && errno == EINTR) {
            continue;
        }
        if (some < 0 && errno == EINVAL) {
            may_be_direct_ = false;  // it opens such files, but reads none
        }
        done += some > 0 ? static_cast<size_t>(some) : 0;
        if (some <= 0 || (done < before + bytes && done % sector != 0)) {
            return false;
        }
    }
    std::memcpy(to, memory + before, bytes);
    return true;
}

void DiskFile::read_cached(uint64_t position, char* to, size_t bytes) const {
    for (size_t done = 0; done < bytes;) {
        const ssize_t some = pread(file_, to + done, bytes - done, static_cast<off_t>(position + done));
        if (some < 0 && errno == EINTR) {
            continue;
        }
        if (some <= 0) {
            throw DiskError(path_ + (some < 0 ? std::string(" cannot be read: ") + std::strerror(errno)
                                              : " was cut off while the model was loaded: load it again"));
        }
        done += static_cast<size_t>(some);
    }
}

DiskFile::Stamp DiskFile::stamp() const {
    struct stat found;
    if (fstat(file_, &found) != 0) {
        throw DiskError(path_ + " cannot be read: " + std::strerror(errno));
    }
#ifdef __APPLE__
    const auto& time = found.st_mtimespec;
#else
    const auto& time = found.st_mtim;
#endif
    return {static_cast<int64_t>(found.st_size), static_cast<int64_t>(time.tv_sec), static_cast<int64_t>(time.tv_nsec)};
}

void DiskFile::check() const {
    if (!(stamp() == opened_)) {
        throw DiskError(path_ + " was changed while the model was loaded: load it again");
    }
}

#else

DiskFile::DiskFile(const std::string& path) : path_(path) {
    throw DiskError("this package cannot leave them there on Windows: take params_backend='cpu'");
}
DiskFile::~DiskFile() = default;
void DiskFile::read(uint64_t, void*, size_t, bool) const {}
void DiskFile::check() const {}
DiskFile::Stamp DiskFile::stamp() const {
    return {};
}

#endif

}  // namespace sdcpp
