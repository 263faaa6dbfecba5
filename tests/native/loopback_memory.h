// Memory of the devices and of their host buffers, and the addresses by which tensors refer to it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "loopback_order.h"

struct ggml_backend_buffer;

namespace loopback {

// Addresses that no host code can use. Tensors in device memory point into them, while the bytes lie elsewhere. An
// address is not given out again before everything near it was freed, so a stale pointer hits nothing for long.
class AddressSpace {
public:
    // Returns an address with `size` unusable bytes behind it, or 0.
    uintptr_t reserve(size_t size);
    void release(uintptr_t address);

    // Async-signal-safe.
    bool contains(uintptr_t address) const;

private:
    struct Arena {
        std::atomic<uintptr_t> base{0};
        std::atomic<size_t> size{0};
        size_t used = 0;
        size_t live = 0;
    };
    static constexpr size_t ARENA_SIZE = size_t{16} << 30;
    static constexpr size_t MAX_ARENAS = 1024;

    std::array<Arena, MAX_ARENAS> arenas_;
    std::atomic<size_t> count_{0};
};

// The bytes of one buffer.
class Bytes {
public:
    // Returns an object without bytes when the memory cannot be had. Sparse bytes cost nothing until they are touched.
    static Bytes allocate(size_t size, bool sparse);
    // Returns bytes that others own.
    static Bytes borrow(void* data, size_t size);

    Bytes() = default;
    Bytes(Bytes&& other) noexcept { *this = std::move(other); }
    Bytes& operator=(Bytes&& other) noexcept;
    ~Bytes() { release(); }

    char* data() const { return data_; }

private:
    void release();

    char* data_ = nullptr;
    size_t size_ = 0;
    bool mapped_ = false;
    bool borrowed_ = false;
};

struct Device;

// One live buffer of device memory or of a host buffer type.
struct Memory {
    Memory(Device* device, bool pinned, uintptr_t base, size_t size)
        : device(device), pinned(pinned), base(base), size(size), accesses(size, pinned) {}

    Device* device;
    bool pinned;     // a host buffer; otherwise device memory
    uintptr_t base;  // what tensors see
    size_t size;
    Bytes bytes;                            // without data in dry mode
    ggml_backend_buffer* buffer = nullptr;  // which knows what it is used for
    AccessMap accesses;

    bool contains(uintptr_t address, size_t length) const {
        return address >= base && address - base <= size && length <= size - (address - base);
    }
    char* real(uintptr_t address) const { return bytes.data() == nullptr ? nullptr : bytes.data() + (address - base); }
};

// Makes a fault on a device address say what happened before the process dies of it.
void install_fault_handler(const AddressSpace& addresses);

}  // namespace loopback
