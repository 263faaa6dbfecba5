#include "loopback_memory.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <utility>

namespace loopback {

static constexpr size_t PAGE = 4096;
static constexpr size_t ALIGNMENT = 128;

static size_t page_up(size_t size) {
    return (size + PAGE - 1) / PAGE * PAGE;
}

uintptr_t AddressSpace::reserve(size_t size) {
    const size_t needed = page_up(size) + PAGE;  // one page of distance to the next buffer
    const size_t count = count_.load();
    auto take = [&](Arena& arena) {
        const uintptr_t address = arena.base + arena.used;
        arena.used += needed;
        arena.live++;
        return address;
    };
    for (size_t i = 0; i < count; i++) {
        if (arenas_[i].size - arenas_[i].used >= needed) {
            return take(arenas_[i]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (arenas_[i].live == 0 && arenas_[i].size >= needed) {
            arenas_[i].used = 0;
            return take(arenas_[i]);
        }
    }
    if (count == MAX_ARENAS) {
        return 0;
    }
    size_t arena_size = needed > ARENA_SIZE ? needed : ARENA_SIZE;
    void* base = mmap(nullptr, arena_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {  // limited address space
        arena_size = needed;
        base = mmap(nullptr, arena_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) {
            return 0;
        }
    }
    arenas_[count].base = reinterpret_cast<uintptr_t>(base);
    arenas_[count].size = arena_size;
    count_ = count + 1;
    return take(arenas_[count]);
}

void AddressSpace::release(uintptr_t address) {
    for (size_t i = 0; i < count_; i++) {
        Arena& arena = arenas_[i];
        if (address >= arena.base && address - arena.base < arena.size) {
            arena.live--;
            return;
        }
    }
}

bool AddressSpace::contains(uintptr_t address) const {
    const size_t count = count_.load();
    for (size_t i = 0; i < count; i++) {
        const uintptr_t base = arenas_[i].base.load();
        if (address >= base && address - base < arenas_[i].size.load()) {
            return true;
        }
    }
    return false;
}

#if defined(__SANITIZE_ADDRESS__)
static constexpr bool MAP_LARGE = false;  // its allocator notices what runs over the end of a buffer
#else
static constexpr bool MAP_LARGE =
    true;  // large buffers go back to the system at once, so that tests can watch its books
#endif

Bytes Bytes::allocate(size_t size, bool sparse) {
    Bytes bytes;
    bytes.size_ = size;
    bytes.mapped_ = sparse || (MAP_LARGE && size >= (size_t{1} << 20));
    if (bytes.mapped_) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (sparse ? MAP_NORESERVE : 0);
        void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
        bytes.data_ = data == MAP_FAILED ? nullptr : static_cast<char*>(data);
    } else {
        bytes.data_ = static_cast<char*>(::operator new (size, std::align_val_t{ALIGNMENT}, std::nothrow));
    }
    return bytes;
}

Bytes Bytes::borrow(void* data, size_t size) {
    Bytes bytes;
    bytes.data_ = static_cast<char*>(data);
    bytes.size_ = size;
    bytes.borrowed_ = true;
    return bytes;
}

Bytes& Bytes::operator=(Bytes&& other) noexcept {
    if (this != &other) {
        release();
        data_ = std::exchange(other.data_, nullptr);
        size_ = other.size_;
        mapped_ = other.mapped_;
        borrowed_ = other.borrowed_;
    }
    return *this;
}

void Bytes::release() {
    if (data_ == nullptr) {
        return;
    }
    if (borrowed_) {
        data_ = nullptr;
        return;
    }
    if (mapped_) {
        munmap(data_, size_);
    } else {
        ::operator delete (data_, std::align_val_t{ALIGNMENT});
    }
    data_ = nullptr;
}

static const AddressSpace* guarded_addresses = nullptr;
static struct sigaction previous_action[2];

static void fault_handler(int number, siginfo_t* info, void*) {
    if (guarded_addresses->contains(reinterpret_cast<uintptr_t>(info->si_addr))) {
        static const char text[] = "loopback: host code used an address of device memory\n";
        const ssize_t ignored = write(STDERR_FILENO, text, sizeof(text) - 1);
        (void)ignored;
    }
    // Returning runs the faulting instruction again, this time under whoever was responsible before.
    sigaction(number, &previous_action[number == SIGSEGV ? 0 : 1], nullptr);
}

// Unloading the module must not leave a handler behind.
static struct FaultHandlerGuard {
    ~FaultHandlerGuard() {
        if (guarded_addresses == nullptr) {
            return;
        }
        const int numbers[2] = {SIGSEGV, SIGBUS};
        for (int i = 0; i < 2; i++) {
            struct sigaction current;
            if (sigaction(numbers[i], nullptr, &current) == 0 && (current.sa_flags & SA_SIGINFO) != 0 &&
                current.sa_sigaction == fault_handler) {
                sigaction(numbers[i], &previous_action[i], nullptr);
            }
        }
    }
} fault_handler_guard;

void install_fault_handler(const AddressSpace& addresses) {
    guarded_addresses = &addresses;
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = fault_handler;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &previous_action[0]);
    sigaction(SIGBUS, &action, &previous_action[1]);
}

}  // namespace loopback
