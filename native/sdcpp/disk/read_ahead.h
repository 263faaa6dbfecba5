// Weights on disk, read ahead into a ring of blocks of host memory, from which they are copied to the device.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "sdcpp/disk/disk_weights.h"

namespace sdcpp {

class ReadAhead {
public:
    // What is read at once, at most a block.
    struct Piece {
        const DiskWeights* weights = nullptr;
        const char* source = nullptr;
        size_t bytes = 0;
        bool operator==(const Piece& other) const { return source == other.source && bytes == other.bytes; }
    };
    static constexpr size_t block_bytes = 4u << 20;
    static constexpr size_t ring_bytes = 16 * block_bytes;
    static constexpr size_t readers = 8;  // threads: what disks read at once, and some that copy or convert meanwhile

    // Takes the ring in a device's host buffer type, or in plain memory where that is refused.
    explicit ReadAhead(ggml_backend_dev_t dev, size_t threads = readers);
    virtual ~ReadAhead();
    ReadAhead(const ReadAhead&) = delete;
    ReadAhead& operator=(const ReadAhead&) = delete;

    bool pinned() const { return pinned_; }
    // Tells whether what an owner expected is not expected any more: since another one came in between, something else
    // was taken, or it was forgotten. Nothing is expected then.
    virtual bool lost(const void* owner);
    // Says what will be taken behind all that was expected before, in this order.
    virtual void expect(const Piece& piece);
    // Returns how many bytes are expected and not taken yet.
    virtual size_t expected() const;
    // Expects nothing any more.
    virtual void forget();

    // Returns the bytes of a piece, which was the next one expected, or is read now in place of all that were. Throws
    // what reading it did. Each one is to be followed by sent().
    virtual const char* take(const Piece& piece);
    // Reads a piece, which was the next one expected, to a place in host memory; throws what that did.
    virtual void read_to(const Piece& piece, char* to);
    // Says that the last piece was given to a stream to copy or, with NULL, was copied.
    virtual void sent(ggml_backend_t stream);

private:
    struct Block {
        char* data = nullptr;
        ggml_backend_event_ptr copied;
        bool in_flight = false;  // until the event
    };
    struct Filling {
        Piece piece;
        Block* block = nullptr;
        bool done = false;
        std::exception_ptr error;
    };
    void work();
    void forget_all(std::unique_lock<std::mutex>& lock);

    ggml_backend_buffer_ptr memory_;
    bool pinned_ = false;
    std::vector<Block> blocks_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Piece> expected_;                     // that have no block yet
    std::deque<std::shared_ptr<Filling>> fillings_;  // being read or read, in the order in which they will be taken
    std::deque<Block*> free_;                        // the first one free first
    std::shared_ptr<Filling> taken_;
    const void* owner_ = nullptr;  // of what is expected; NULL: lost
    bool stop_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace sdcpp
