#include "sdcpp/disk/disk_file.h"

#include <cerrno>
#include <cstring>

#ifndef _WIN32
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace sdcpp {

#ifndef _WIN32

DiskFile::DiskFile(const std::string& path) : path_(path), file_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (file_ < 0) {
        throw DiskError(path + " cannot be opened: " + std::strerror(errno));
    }
    opened_ = stamp();
}

DiskFile::~DiskFile() {
    if (file_ >= 0) {
        close(file_);
    }
}

void DiskFile::read(uint64_t position, void* to, size_t bytes) const {
    for (size_t done = 0; done < bytes;) {
        const ssize_t some =
            pread(file_, static_cast<char*>(to) + done, bytes - done, static_cast<off_t>(position + done));
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
void DiskFile::read(uint64_t, void*, size_t) const {}
void DiskFile::check() const {}
DiskFile::Stamp DiskFile::stamp() const {
    return {};
}

#endif

}  // namespace sdcpp
