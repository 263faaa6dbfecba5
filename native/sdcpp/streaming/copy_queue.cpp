#include "sdcpp/streaming/copy_queue.h"

#include <algorithm>
#include <utility>

#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/streaming/test_hooks.h"

namespace sdcpp {

namespace {

constexpr uint64_t enough_to_time = 8 << 20;  // bytes from which on copying them tells the bus's speed

}  // namespace

CopyQueue::CopyQueue(const Placement& owner, const StreamPlan& plan)
    : owner_(owner), plan_(plan), compute_(owner.runtime_backend) {}

const char* CopyQueue::open() {
    if (std::exchange(opened_, true) || !owner_.overlap) {
        return nullptr;
    }
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(owner_.runtime->dev, &props);
    if (!props.caps.async) {
        return "does not copy asynchronously";
    }
    if (!props.caps.events) {
        return "has no events";
    }
    copy_ = owner_.runtime->copy_backend();
    return copy_ == nullptr ? "gives no second stream" : nullptr;
}

void CopyQueue::take_turns() {
    copy_ = nullptr;
    arrived_.clear();
    marks_.clear();
    loaded_.reset();
}

const char* CopyQueue::start(Arena& arena) {
    pinned_ = arena.pinned() && owner_.disk == nullptr;
    if (owner_.disk != nullptr) {
        reads_ = owner_.placements->read_ahead(owner_.runtime->dev);
    }
    const bool refused = !make_events();
    if (refused) {
        take_turns();
    }
    copies_ = arena.slot_copies();
    next_ = issued_ = expected_ = 0;
    if (reads_ != nullptr) {
        keep_in_host_memory(arena);
    }
    return refused ? "refused an event" : nullptr;
}

// Makes an event for each filling's arrival, for the mark behind it, and for those marks before it that are waited for.
bool CopyQueue::make_events() {
    arrived_.clear();
    marks_.clear();
    if (copy_ == nullptr) {
        return true;
    }
    const size_t count = plan_.slots.size();
    marks_.resize(2 * count);
    bool made = true;
    const auto make = [&](ggml_backend_event_ptr& event) {
        if (!event) {
            event.reset(ggml_backend_event_new(owner_.runtime->dev));
            made = made && event;
        }
    };
    make(loaded_);
    for (size_t i = 0; i < count; ++i) {
        make(arrived_.emplace_back());
        make(marks_[2 * i + 1]);
        for (const SlotPart& part : plan_.slots[i].parts) {
            if (part.back > 0) {
                make(marks_[(behind(i + count) - part.back) % marks_.size()]);
            }
        }
    }
    return made;
}

void CopyQueue::drain() {
    next_ = issued_ = expected_ = 0;
    if (reads_ != nullptr) {
        reads_->forget();
    }
    synchronize();
    ggml_backend_synchronize(compute_);
}

void CopyQueue::stop() {
    drain();
    copies_.clear();
}

void CopyQueue::synchronize() {
    if (copy_ != nullptr) {
        ggml_backend_synchronize(copy_);
    }
}

// --- copies ----------------------------------------------------------------------------------------------------------

// Calls a function for what is read at once of some bytes that lie on disk, with its place among them, and where host
// memory keeps it, or NULL.
template <typename F>
void CopyQueue::each_piece(const DiskWeights& disk, const char* source, uint64_t bytes, F&& function) {
    for (uint64_t at = 0; at < bytes;) {
        const DiskWeights::Part part = disk.part_at(source + at, std::min<uint64_t>(ReadAhead::block_bytes, bytes - at));
        function(ReadAhead::Piece{&disk, part.source, part.bytes}, at, part.kept);
        at += part.bytes;
    }
}

// Lets host memory keep, of weights on disk, what is streamed in each graph first, then residents, which may have to make
// room for others.
void CopyQueue::keep_in_host_memory(Arena& arena) {
    std::vector<DiskWeights::Part> streamed, residents;
    const auto add = [&](std::vector<DiskWeights::Part>& ranges, const char* source, uint64_t bytes) {
        if (owner_.disk->contains(source)) {
            ranges.push_back({source, static_cast<size_t>(bytes), nullptr});
        }
    };
    for (const auto& slot : copies_) {
        for (const SlotCopy& one : slot) {
            add(streamed, one.source, one.end - one.begin);
        }
    }
    for (const Weight& weight : arena.weights()) {
        if (weight.resident()) {
            add(residents, static_cast<const char*>(weight.tensor->data), ggml_nbytes(weight.tensor));
        }
    }
    reads_->forget();
    reads_->lost(this);
    try {
        const auto parts = owner_.disk->keep(streamed, residents);
        for (const DiskWeights::Part& part : parts) {
            reads_->expect({owner_.disk.get(), part.source, part.bytes});
        }
        for (const DiskWeights::Part& part : parts) {
            reads_->read_to({owner_.disk.get(), part.source, part.bytes}, part.kept);
        }
    } catch (...) {
        owner_.disk->keep_nothing();
        throw;
    }
}

// Lets some bytes on disk be read, but for those that host memory keeps.
void CopyQueue::expect(const char* source, uint64_t bytes) {
    each_piece(*owner_.disk, source, bytes, [&](const ReadAhead::Piece& piece, uint64_t, const char* kept) {
        if (kept == nullptr) {
            reads_->expect(piece);
        }
    });
}

void CopyQueue::copy(ggml_tensor* target, const char* source, uint64_t offset, uint64_t bytes) {
    if (owner_.disk == nullptr || !owner_.disk->contains(source)) {
        copy_from(target, source, offset, bytes, owner_.disk == nullptr ? pinned_ : weights_buffer(source).pinned);
        return;
    }
    each_piece(*owner_.disk, source, bytes, [&](const ReadAhead::Piece& piece, uint64_t at, const char* kept) {
        if (kept != nullptr) {
            copy_from(target, kept, offset + at, piece.bytes, weights_pinned(owner_.disk->memory()));
            return;
        }
        const char* const data = reads_->take(piece);
        copy_from(target, data, offset + at, piece.bytes, reads_->pinned());
        reads_->sent(copy_);
    });
}

void CopyQueue::copy_from(ggml_tensor* target, const char* source, uint64_t offset, uint64_t bytes, bool pinned) {
    double seconds = 0.0;
    if (copy_ != nullptr) {
        ggml_backend_tensor_set_async(copy_, target, source, offset, bytes);
        untimed_ += bytes;
    } else {
        const double begin = now();
        ggml_backend_tensor_set(target, source, offset, bytes);
        seconds = now() - begin;
    }
    owner_.record->copied(true, pinned, bytes, seconds);
}

void CopyQueue::load(const std::vector<Weight*>& residents) {
    uint64_t bytes = 0;
    for (const Weight* weight : residents) {
        bytes += ggml_nbytes(weight->tensor);
    }
    // A few bytes only tell how long a copy takes to begin.
    const bool timing = copy_ != nullptr && timed_bytes_ < std::min(bytes, enough_to_time);
    if (timing) {
        ggml_backend_synchronize(copy_);
    }
    if (reads_ != nullptr && !residents.empty()) {
        // The fillings that are copied behind them are not expected yet.
        reads_->forget();
        reads_->lost(this);
        expected_ = issued_;
        for (const Weight* weight : residents) {
            const auto* const source = static_cast<const char*>(weight->host.data);
            if (owner_.disk->contains(source)) {
                expect(source, ggml_nbytes(weight->tensor));
            }
        }
    }
    const double begin = now();
    for (Weight* weight : residents) {
        copy(weight->place, static_cast<const char*>(weight->host.data), 0, ggml_nbytes(weight->tensor));
        weight->loaded = true;
    }
    if (copy_ == nullptr) {
        return;
    }
    ggml_backend_event_record(loaded_.get(), copy_);
    if (timing) {
        ggml_backend_event_synchronize(loaded_.get());
        note_rate(bytes, now() - begin);
    }
    if (keeps("load")) {
        ggml_backend_event_wait(compute_, loaded_.get());
    }
}

// Calls a function for the copies of a part of a slot: with the copy, and which bytes of the slot it fills.
template <typename F>
void CopyQueue::each_part(uint64_t number, const SlotPart& part, F&& function) const {
    const std::vector<SlotPart>& parts = plan_.slots[index(number)].parts;
    for (const SlotCopy& one : copies_[index(number)]) {
        uint64_t begin = std::max(one.begin, part.begin), end = std::min(one.end, part.end);
        if (begin >= end) {
            continue;
        }
        if (one.whole) {
            // All of its room has to be free: it is copied with the part that is free last.
            const bool later = std::any_of(&part + 1, parts.data() + parts.size(), [&](const SlotPart& other) {
                return other.begin < one.end && one.begin < other.end;
            });
            if (later) {
                continue;
            }
            begin = one.begin;
            end = one.end;
        }
        function(one, begin, end);
    }
}

// Lets what fills the slots from a number on be read, as far as the ring holds once that of this number is taken out of
// it, so that the disk has enough to do until the next one.
void CopyQueue::expect_fillings(uint64_t number) {
    expected_ = reads_->lost(this) ? number : std::max(expected_, number);
    const uint64_t ahead = ReadAhead::ring_bytes + slot(number).bytes;
    while (reads_->expected() < ahead && expected_ < number + plan_.slots.size()) {
        for (const SlotPart& part : plan_.slots[index(expected_)].parts) {
            each_part(expected_, part, [&](const SlotCopy& one, uint64_t begin, uint64_t end) {
                const char* const source = one.source + (begin - one.begin);
                if (owner_.disk->contains(source)) {
                    expect(source, end - begin);
                }
            });
        }
        ++expected_;
    }
}

void CopyQueue::issue(uint64_t number) {
    if (reads_ != nullptr) {
        expect_fillings(number);
    }
    const std::vector<SlotPart>& parts = plan_.slots[index(number)].parts;
    size_t last = SIZE_MAX;
    for (const SlotPart& part : parts) {
        const bool waits = part.back > 0 && part.back != last && behind(number) >= part.back;
        if (copy_ != nullptr && waits && keeps("reader")) {
            ggml_backend_event_wait(copy_, mark(behind(number) - part.back));
        }
        last = part.back;
        each_part(number, part, [&](const SlotCopy& one, uint64_t begin, uint64_t end) {
            // A target for all of a slot begins where the slot does, any other one at its own begin.
            copy(one.target, one.source + (begin - one.begin), one.whole ? 0 : begin, end - begin);
        });
    }
    if (copy_ != nullptr) {
        ggml_backend_event_record(arrived_[index(number)].get(), copy_);
    }
}

void CopyQueue::issue_until(uint64_t number) {
    for (; issued_ < number; ++issued_) {
        issue(issued_);
    }
}

bool CopyQueue::free_for(uint64_t number, uint64_t given) const {
    const uint64_t back = plan_.slots[index(number)].parts.back().back;
    // A copy from pageable memory holds up the host, which must not wait for what the device is computing now.
    return back == 0 || behind(number) < back || behind(number) - back + (pinned_ ? 0 : 2) < given;
}

// --- order -----------------------------------------------------------------------------------------------------------

void CopyQueue::mark_before(uint64_t number) {
    if (ggml_backend_event_t event = mark(2 * number)) {
        ggml_backend_event_record(event, compute_);
    }
}

void CopyQueue::mark_behind(uint64_t number) {
    ggml_backend_event_record(mark(behind(number)), compute_);
}

void CopyQueue::wait_for(uint64_t number) {
    if (keeps("arrival")) {
        ggml_backend_event_wait(compute_, arrived_[index(number)].get());
    }
}

void CopyQueue::host_wait_for(uint64_t number) {
    ggml_backend_event_synchronize(arrived_[index(number)].get());
}

// --- time ------------------------------------------------------------------------------------------------------------

void CopyQueue::note_rate(uint64_t bytes, double seconds) {
    if (bytes > 0) {
        timed_bytes_ = bytes;
        rate_ = static_cast<double>(bytes) / std::max(seconds, 1e-9);
    }
}

void CopyQueue::note_rate_of_fillings(uint64_t bytes, double seconds) {
    if (bytes >= std::min(enough_to_time, timed_bytes_)) {
        note_rate(bytes, seconds);
    }
}

void CopyQueue::record_seconds() {
    if (rate_ > 0.0) {
        owner_.record->took(static_cast<double>(std::exchange(untimed_, 0)) / rate_);
    }
}

}  // namespace sdcpp
