// Who of a context holds device memory, and how much there may be.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "ggml-backend.h"

namespace sdcpp {

class Placements;
class Streamer;

// Returns the device memory, in bytes, that stays free when no budget is given, of a device that has `total` bytes, of
// which a context can have `reachable`. Where a graph needs some of it, it is given up: see MemoryBudget::give_up_reserve.
uint64_t device_reserve(uint64_t total, uint64_t reachable);

class MemoryBudget {
public:
    MemoryBudget(const Placements& placements, float max_vram) : placements_(placements), max_vram_(max_vram) {}

    // Sets the budget in GiB; negative: free memory minus that; 0: free memory minus a reserve.
    void set_max_vram(float max_vram) { max_vram_ = max_vram; }
    // Tells whether a budget was given and is all of these bytes, so that another number would help.
    bool is_given(uint64_t budget) const;

    // The context's streamers, who add and remove themselves.
    const std::vector<Streamer*>& streamers() const { return streamers_; }
    void add(Streamer* streamer) { streamers_.push_back(streamer); }
    void remove(Streamer* streamer);
    // Counts what a runner holds besides weights and what streamers know of: compute buffers and the like, in bytes.
    void count(ggml_backend_dev_t dev, uint64_t bytes) { others_[dev] += bytes; }
    void discount(ggml_backend_dev_t dev, uint64_t bytes) { others_[dev] -= bytes; }

    // Returns what is free on a device and what the context holds there, in bytes.
    uint64_t reachable(ggml_backend_dev_t dev) const;
    // Returns the device memory that the context may use, in bytes.
    uint64_t bytes(ggml_backend_dev_t dev) const;
    // Gives up as much of a measured budget's reserve as lets the context use `needed` bytes; false where that does not
    // help. The reserve is whole again in the first generation for which a whole one leaves as much.
    bool give_up_reserve(ggml_backend_dev_t dev, uint64_t needed);
    // Returns what the context holds on a device but for what streamers hold, who can make room.
    uint64_t fixed(ggml_backend_dev_t dev) const;
    // Returns what the context holds on a device but for one streamer: weights that live there, and runners' memory.
    uint64_t held(ggml_backend_dev_t dev, const Streamer* but = nullptr) const;
    // The same, but for what idle streamers hold, who can make room.
    uint64_t held_by_active(ggml_backend_dev_t dev, const Streamer* but) const;
    // Returns what of the budget is left.
    uint64_t left(ggml_backend_dev_t dev) const;

    // Evicts what idle streamers but one keep on a device, until `wanted` more bytes fit into the budget.
    void make_room(ggml_backend_dev_t dev, uint64_t wanted, const Streamer* but = nullptr);
    // Evicts all of it.
    void make_all_room(ggml_backend_dev_t dev, const Streamer* but = nullptr);
    // Lets active streamers but one keep less by that many bytes, or as much less as they can.
    void shrink(ggml_backend_dev_t dev, uint64_t bytes, const Streamer* but);
    // Waits for the copies that devices were given, such as for a pass that did not come: weights may change then.
    void finish_copies();
    // Starts a generation: see Streamer::begin_generation.
    void begin_generation();

private:
    const Placements& placements_;
    float max_vram_;
    std::vector<Streamer*> streamers_;
    std::map<ggml_backend_dev_t, uint64_t> others_;
    struct GivenUp {
        uint64_t reserve;  // that is left
        uint64_t needed;   // the budget that it was given up for
    };
    std::map<ggml_backend_dev_t, GivenUp> given_up_;
};

}  // namespace sdcpp
