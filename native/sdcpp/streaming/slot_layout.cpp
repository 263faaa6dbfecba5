#include "sdcpp/streaming/slot_layout.h"

#include <algorithm>

namespace sdcpp {

namespace {

// Gives the slots their places, and notes what each of their parts waits for.
class Layout {
public:
    Layout(const StreamInput& input, std::vector<Slot>& slots, uint64_t memory, uint64_t buffer)
        : input_(input), slots_(slots), memory_(memory), buffer_(buffer) {}

    // Returns the memory that is used.
    uint64_t lay_out() {
        uint64_t largest = 0;
        for (const Slot& slot : slots_) {
            largest = std::max(largest, slot.bytes);
        }
        // Where two of them do not fit one behind the other, each second one lies at the memory's end.
        const bool at_both_ends = memory_ < 2 * largest;
        uint64_t end = 0, used = 0;
        for (size_t i = 0; i < slots_.size(); ++i) {
            Slot& slot = slots_[i];
            slot.offset = end + slot.bytes <= memory_ ? end : 0;
            const uint64_t last = memory_ - slot.bytes;
            if (at_both_ends && overlap(last, memory_) < overlap(slot.offset, slot.offset + slot.bytes)) {
                slot.offset = last;
            }
            if (!borrow(i)) {
                end = slot.offset + slot.bytes;
                used = std::max(used, end);
                give(slot, behind(i));
            }
        }
        owners_.clear();
        for (size_t number = 0; number < 2 * slots_.size(); ++number) {
            Slot& slot = slots_[number % slots_.size()];
            if (!slot.borrows) {
                slot.parts.clear();
                give(slot, behind(number));
            }
        }
        for (Slot& slot : slots_) {
            std::sort(slot.parts.begin(), slot.parts.end(),
                      [](const SlotPart& a, const SlotPart& b) { return a.back > b.back; });
        }
        return used;
    }

private:
    // Who has a part of the memory, until the device passes a mark.
    struct Owner {
        uint64_t begin;
        uint64_t end;
        size_t mark;
    };

    static size_t behind(size_t number) { return 2 * number + 1; }

    // Returns how much a slot there would take of what was given away last.
    uint64_t overlap(uint64_t begin, uint64_t end) const {
        if (owners_.empty()) {
            return 0;
        }
        begin = std::max(begin, owners_.back().begin);
        return std::max(begin, std::min(end, owners_.back().end)) - begin;
    }

    // Gives a slot its place until a mark, and notes who had it.
    void give(Slot& slot, size_t mark) {
        const uint64_t begin = slot.offset, stop = begin + slot.bytes;
        next_.clear();
        for (const Owner& owner : owners_) {
            const uint64_t from = std::max(owner.begin, begin), to = std::min(owner.end, stop);
            if (from >= to) {
                next_.push_back(owner);
                continue;
            }
            slot.parts.push_back({from - begin, to - begin, mark - owner.mark});
            if (owner.begin < from) {
                next_.push_back({owner.begin, from, owner.mark});
            }
            if (owner.end > to) {
                next_.push_back({to, owner.end, owner.mark});
            }
        }
        next_.push_back({begin, stop, mark});
        owners_.swap(next_);
    }

    // Lays a slot into the compute buffer, where that is free for longer than its place in the slots' memory.
    bool borrow(size_t number) {
        Slot& slot = slots_[number];
        if (slot.bytes > buffer_) {
            return false;
        }
        // One more than the mark that it waits for; 0: for none, as the first slots, so that some always have memory of
        // their own.
        size_t least = free_from(owners_, slot.offset, slot.bytes);
        uint64_t height = 0;
        for (size_t i = slot.segments.front(); i <= slot.segments.back(); ++i) {
            height = std::max(height, input_.segments[i].height);
        }
        const uint64_t top = buffer_ - slot.bytes;
        const uint64_t below = lent_.empty() ? top : lent_.back().begin - std::min(lent_.back().begin, slot.bytes);
        bool found = false;
        for (uint64_t offset : {top, below}) {
            if (offset < height) {
                continue;
            }
            const size_t free = free_from(number, offset, least);
            if (free < least) {
                least = free;
                slot.borrows = found = true;
                slot.offset = offset;
                slot.parts.assign(1, {0, slot.bytes, free == 0 ? 0 : behind(number) + 1 - free});
            }
        }
        if (found) {
            lent_.push_back({slot.offset, slot.offset + slot.bytes, behind(number)});
        }
        return found;
    }

    // Returns when a place is free, as far as others had it: one more than the mark; 0: when the graph begins.
    static size_t free_from(const std::vector<Owner>& owners, uint64_t offset, uint64_t bytes) {
        size_t free = 0;
        for (const Owner& owner : owners) {
            if (owner.begin < offset + bytes && offset < owner.end) {
                free = std::max(free, owner.mark + 1);
            }
        }
        return free;
    }

    // Returns when the compute buffer is free from an offset on, likewise, or something that is not less than `enough`.
    size_t free_from(size_t number, uint64_t offset, size_t enough) const {
        size_t free = free_from(lent_, offset, slots_[number].bytes);
        size_t mark = 2 * number;  // the first one behind the segment that is looked at
        for (size_t i = slots_[number].segments.front(); i-- > 0 && mark + 1 > free && free < enough;) {
            while (mark > 0 && (mark % 2 == 0 ? i <= slots_[mark / 2 - 1].segments.back()
                                              : i < slots_[mark / 2].segments.front())) {
                --mark;
            }
            if (mark + 1 <= free) {
                break;
            }
            if (input_.segments[i].height > offset) {
                free = mark + 1;
            }
        }
        return free;
    }

    const StreamInput& input_;
    std::vector<Slot>& slots_;
    const uint64_t memory_;
    const uint64_t buffer_;
    std::vector<Owner> owners_, next_;  // of the slots' memory
    std::vector<Owner> lent_;           // of the compute buffer
};

}  // namespace

uint64_t lay_out_slots(const StreamInput& input, std::vector<Slot>& slots, uint64_t memory, uint64_t buffer) {
    return Layout(input, slots, memory, buffer).lay_out();
}

}  // namespace sdcpp
