// A network's weights on the device: the memory that residents and slots have there, and which address each weight has.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-cpp.h"
#include "ggml.h"
#include "sdcpp/streaming/scan.h"
#include "sdcpp/streaming/stream_plan.h"

namespace sdcpp {

struct Weight {
    ggml_tensor* tensor = nullptr;  // the engine's own
    ggml_tensor host = {};          // where that is in host memory, while it is bound
    ggml_tensor* place = nullptr;   // where it is on the device
    uint64_t bytes = 0;             // on the device, with the padding
    int segment = -1;               // -1: fixed
    int slot = -1;                  // -1: resident
    size_t block = 0;               // of the arena, when resident
    uint64_t offset = 0;            // in that, or in its slot
    bool borrows = false;           // its slot lies in the compute buffer
    bool loaded = false;            // a resident that is on the device

    bool resident() const { return slot < 0; }
    // Gives the engine's tensor the address of another one.
    void lie_at(const ggml_tensor& where) const {
        tensor->buffer = where.buffer;
        tensor->data = where.data;
        tensor->extra = where.extra;
    }
};

// One copy into a slot.
struct SlotCopy {
    ggml_tensor* target = nullptr;
    uint64_t begin = 0;  // bytes from the begin of the slot
    uint64_t end = 0;
    const char* source = nullptr;
    bool whole = false;  // not to be copied in parts
};

class Arena {
public:
    // For weights that a backend computes with. The plan is the owner's, who changes it only while the arena is empty.
    Arena(ggml_backend_t backend, const StreamPlan& plan);

    ggml_backend_buffer_type_t type() const { return type_; }
    std::vector<Weight>& weights() { return weights_; }
    // Takes over which weights there are and, of the plan, where each will lie.
    void assign(const Scan& scan);
    // Forgets them.
    void forget() { weights_.clear(); }
    // Says that the weights have other values now, so that residents have to be copied again.
    void outdate();

    // Tells whether nothing was allocated.
    bool empty() const { return blocks_.empty(); }
    // Returns the device memory that it holds.
    uint64_t bytes() const;
    // Allocates what is missing: everything, or the blocks that were evicted. False when the device refuses some of it.
    bool alloc();
    // Tells whether memory was allocated since the last graph that was computed, so that the next one loads residents.
    bool unloaded() const { return unloaded_; }
    void note_loaded() { unloaded_ = false; }
    // Frees residents of that many bytes, the graph's last ones first; returns the bytes that could not be freed.
    uint64_t evict(uint64_t bytes);
    // Frees everything.
    void clear();

    // Tells whether the weights were pinned when the arena was allocated.
    bool pinned() const { return pinned_; }
    // Returns the copies that fill each slot.
    std::vector<std::vector<SlotCopy>> slot_copies();

    // Gives the weights their addresses on the device, but for those in slots that borrow the compute buffer, which is
    // not there yet. `again`: they are there already.
    void bind(bool again);
    // Gives them their addresses in host memory again.
    void unbind();
    // Gives those in the compute buffer of an allocated graph their addresses there. False when the graph uses the
    // buffer in another way than was planned with.
    bool borrow(ggml_cgraph* graph, const Scan& scan);
    // Gives them their addresses in host memory again, before the compute buffer can change.
    void end_borrowing();

private:
    // One buffer of the device: for the slots, which comes first, or for some residents.
    struct Block {
        uint64_t bytes = 0;
        ggml_backend_buffer_ptr buffer;  // NULL: evicted
    };

    size_t first_resident_block() const { return plan_.slot_bytes > 0 ? 1 : 0; }
    bool create();
    bool fill();
    void divide_into_blocks();
    void put_in_slot(ggml_tensor* tensor, int slot, uint64_t begin);
    std::vector<SlotCopy> copies_of(int slot);
    bool is_free_as_planned(ggml_cgraph* graph, ggml_backend_buffer_t buffer, const Scan& scan) const;

    ggml_backend_dev_t const dev_;
    ggml_backend_buffer_type_t const type_;
    const StreamPlan& plan_;
    std::vector<Weight> weights_;
    std::vector<Block> blocks_;
    ggml_context_ptr places_;
    ggml_backend_buffer_ptr zeros_;      // in host memory, to be copied behind weights
    ggml_backend_buffer borrowed_ = {};  // the compute buffer, as one of weights
    char* base_ = nullptr;               // where that begins, in the places of what lies in it; at first anywhere
    bool pinned_ = false;
    bool unloaded_ = false;
};

}  // namespace sdcpp
