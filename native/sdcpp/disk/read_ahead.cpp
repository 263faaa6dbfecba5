#include "sdcpp/disk/read_ahead.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

namespace sdcpp {

ReadAhead::ReadAhead(ggml_backend_dev_t dev, size_t threads) : blocks_(ring_bytes / block_bytes) {
    ggml_backend_buffer_type_t const host = ggml_backend_dev_host_buffer_type(dev);
    memory_.reset(ggml_backend_buft_alloc_buffer(host != nullptr ? host : ggml_backend_cpu_buffer_type(), ring_bytes));
    if (memory_ == nullptr) {
        memory_.reset(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), ring_bytes));
    }
    if (memory_ == nullptr) {
        throw std::bad_alloc();
    }
    pinned_ = host != nullptr && ggml_backend_buffer_get_type(memory_.get()) == host;
    char* const base = static_cast<char*>(ggml_backend_buffer_get_base(memory_.get()));
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(dev, &props);
    for (size_t i = 0; i < blocks_.size(); ++i) {
        blocks_[i].data = base + i * block_bytes;
        if (props.caps.events) {
            blocks_[i].copied.reset(ggml_backend_event_new(dev));
        }
        free_.push_back(&blocks_[i]);
    }
    try {
        while (threads_.size() < threads) {
            threads_.emplace_back([this] { work(); });
        }
    } catch (const std::system_error&) {
        if (threads_.empty()) {
            throw DiskError("there can be no more threads to read them");
        }
    }
}

ReadAhead::~ReadAhead() {
    {
        std::unique_lock<std::mutex> lock(mutex_);
        stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) {
        thread.join();
    }
    for (const Block& block : blocks_) {
        if (block.in_flight) {
            ggml_backend_event_synchronize(block.copied.get());
        }
    }
}

void ReadAhead::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        changed_.wait(lock, [&] { return stop_ || (!expected_.empty() && !free_.empty()); });
        if (stop_) {
            return;
        }
        const auto filling = std::make_shared<Filling>();
        filling->piece = expected_.front();
        expected_.pop_front();
        filling->block = free_.front();
        free_.pop_front();
        fillings_.push_back(filling);
        lock.unlock();
        try {
            if (std::exchange(filling->block->in_flight, false)) {
                ggml_backend_event_synchronize(filling->block->copied.get());
            }
            filling->piece.weights->read(filling->piece.source, filling->block->data, filling->piece.bytes);
        } catch (...) {
            filling->error = std::current_exception();
        }
        lock.lock();
        filling->done = true;
        changed_.notify_all();
    }
}

bool ReadAhead::lost(const void* owner) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (owner_ == owner) {
        return false;
    }
    forget_all(lock);
    owner_ = owner;
    return true;
}

void ReadAhead::expect(const Piece& piece) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        expected_.push_back(piece);
    }
    changed_.notify_all();
}

size_t ReadAhead::expected() const {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t bytes = 0;
    for (const Piece& piece : expected_) {
        bytes += piece.bytes;
    }
    for (const auto& filling : fillings_) {
        bytes += filling->piece.bytes;
    }
    return bytes;
}

void ReadAhead::forget() {
    std::unique_lock<std::mutex> lock(mutex_);
    forget_all(lock);
}

void ReadAhead::forget_all(std::unique_lock<std::mutex>& lock) {
    owner_ = nullptr;
    expected_.clear();
    changed_.wait(lock, [&] {
        return std::all_of(fillings_.begin(), fillings_.end(), [](const auto& filling) { return filling->done; });
    });
    for (const auto& filling : fillings_) {
        free_.push_back(filling->block);
    }
    fillings_.clear();
}

const char* ReadAhead::take(const Piece& piece) {
    std::unique_lock<std::mutex> lock(mutex_);
    const Piece* const next = !fillings_.empty()  ? &fillings_.front()->piece
                              : expected_.empty() ? nullptr
                                                  : &expected_.front();
    if (next == nullptr || !(*next == piece)) {
        forget_all(lock);
        expected_.push_back(piece);
        changed_.notify_all();
    }
    changed_.wait(lock, [&] { return !fillings_.empty() && fillings_.front()->done; });
    taken_ = fillings_.front();
    fillings_.pop_front();
    if (taken_->error) {
        const auto error = taken_->error;
        free_.push_back(std::exchange(taken_, nullptr)->block);
        forget_all(lock);
        std::rethrow_exception(error);
    }
    return taken_->block->data;
}

void ReadAhead::read_to(const Piece& piece, char* to) {
    std::memcpy(to, take(piece), piece.bytes);
    sent(nullptr);
}

void ReadAhead::sent(ggml_backend_t stream) {
    Block* const block = std::exchange(taken_, nullptr)->block;
    if (stream != nullptr && block->copied) {
        ggml_backend_event_record(block->copied.get(), stream);
        block->in_flight = true;
    } else if (stream != nullptr) {
        ggml_backend_synchronize(stream);
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        free_.push_back(block);
    }
    changed_.notify_all();
}

}  // namespace sdcpp
