// The second stream, which copies weights to the device, and the events that order it with the computing one. Without
// it, copies and computations are made in turn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "sdcpp/disk/read_ahead.h"
#include "sdcpp/streaming/arena.h"
#include "sdcpp/streaming/stream_plan.h"

namespace sdcpp {

struct Placement;

class CopyQueue {
public:
    // The plan is the owner's, who changes it only while the queue is stopped.
    CopyQueue(const Placement& owner, const StreamPlan& plan);

    // Opens the second stream, once, where copies are to overlap with computations. Returns why the device gives none,
    // or NULL.
    const char* open();
    bool overlaps() const { return copy_ != nullptr; }
    // Tells whether copies do not hold up the host: the weights that are copied are pinned, and none is read from disk.
    bool pinned() const { return pinned_; }
    // Tells whether weights are read from disk.
    bool reads() const { return reads_ != nullptr; }

    // Begins with an arena that was just allocated. Returns why copies cannot overlap any more, or NULL.
    const char* start(Arena& arena);
    // Waits until nothing is copied or computed any more, and forgets what was copied ahead.
    void drain();
    // Drains, and forgets the arena.
    void stop();

    // Copies residents; what is computed from now on waits for them.
    void load(const std::vector<Weight*>& residents);

    // Fillings of slots are numbered through all graphs since the last drain, see stream_plan.h.
    //
    // The first filling of the graph that comes, and how many are copied or being copied.
    uint64_t next() const { return next_; }
    uint64_t issued() const { return issued_; }
    // The slot of a filling.
    const Slot& slot(uint64_t number) const { return plan_.slots[index(number)]; }
    // Issues all fillings before a number, each part of a slot once the segments that had it are computed.
    void issue_until(uint64_t number);
    // Issues one, where nothing overlaps.
    void issue(uint64_t number);
    // Tells whether a filling has to wait for nothing but computations that the device was given: those before the mark
    // `given`.
    bool free_for(uint64_t number, uint64_t given) const;
    // Says that the graph with `count` fillings is done.
    void advance(uint64_t count) { next_ += count; }

    // Passes the marks before and behind the segments of a filling on the computing stream.
    void mark_before(uint64_t number);
    void mark_behind(uint64_t number);
    // Lets the computing stream, or the host, wait until a filling has arrived.
    void wait_for(uint64_t number);
    void host_wait_for(uint64_t number);
    // Lets the host wait for all copies.
    void synchronize();

    // Notes how long copying some bytes took by itself.
    void note_rate(uint64_t bytes, double seconds);
    // The same, unless loading told more.
    void note_rate_of_fillings(uint64_t bytes, double seconds);
    // Returns the measured rate in bytes a second; 0: not measured.
    double rate() const { return rate_; }
    // Records the seconds of the copies that overlapped, at that rate.
    void record_seconds();

private:
    size_t index(uint64_t number) const { return static_cast<size_t>(number % plan_.slots.size()); }
    static uint64_t behind(uint64_t number) { return 2 * number + 1; }
    ggml_backend_event_t mark(uint64_t number) const { return marks_[number % marks_.size()].get(); }
    bool make_events();
    void take_turns();
    template <typename F>
    void each_part(uint64_t number, const SlotPart& part, F&& function) const;
    template <typename F>
    static void each_piece(const DiskWeights& disk, const char* source, uint64_t bytes, F&& function);
    void keep_in_host_memory(Arena& arena);
    void expect(const char* source, uint64_t bytes);
    void expect_fillings(uint64_t number);
    void copy(ggml_tensor* target, const char* source, uint64_t offset, uint64_t bytes);
    void copy_from(ggml_tensor* target, const char* source, uint64_t offset, uint64_t bytes, bool pinned);

    const Placement& owner_;
    const StreamPlan& plan_;
    ggml_backend_t const compute_;
    ggml_backend_t copy_ = nullptr;  // NULL: in turn
    bool opened_ = false;
    bool pinned_ = false;
    std::shared_ptr<ReadAhead> reads_;  // NULL: no weight is on disk
    uint64_t expected_ = 0;             // fillings that are being read or were read

    uint64_t next_ = 0;
    uint64_t issued_ = 0;
    std::vector<std::vector<SlotCopy>> copies_;    // of each slot
    std::vector<ggml_backend_event_ptr> arrived_;  // of each slot
    std::vector<ggml_backend_event_ptr> marks_;    // NULL: nobody waits for it
    ggml_backend_event_ptr loaded_;

    double rate_ = 0.0;
    uint64_t timed_bytes_ = 0;  // that the rate was measured on
    uint64_t untimed_ = 0;      // bytes that were copied meanwhile, whose seconds are not on the record yet
};

}  // namespace sdcpp
