#include "sdcpp/streaming/memory_budget.h"

#include <algorithm>
#include <utility>

#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/streaming/common.h"
#include "sdcpp/streaming/streamer.h"

namespace sdcpp {

namespace {

constexpr uint64_t reserve_share = 10;         // this part of the device's memory ...
constexpr uint64_t reserve_most = 1ull << 30;  // ... but not more than this
constexpr uint64_t crowded_share = 10;         // and where only that is left, or too little besides, this part of it

}  // namespace

uint64_t device_reserve(uint64_t total, uint64_t reachable) {
    const uint64_t usual = std::min(total / reserve_share, reserve_most);
    return reachable > usual ? usual : reachable / crowded_share;
}

bool MemoryBudget::is_given(uint64_t budget) const {
    return max_vram_ > 0.0f && static_cast<double>(budget) + 1.0 > static_cast<double>(max_vram_) * gib;
}

void MemoryBudget::remove(Streamer* streamer) {
    streamers_.erase(std::remove(streamers_.begin(), streamers_.end(), streamer), streamers_.end());
}

uint64_t MemoryBudget::reachable(ggml_backend_dev_t dev) const {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(dev, &free, &total);
    return free + held(dev);
}

uint64_t MemoryBudget::bytes(ggml_backend_dev_t dev) const {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(dev, &free, &total);
    const uint64_t all = free + held(dev);
    if (max_vram_ > 0.0f) {
        // Others may hold what was given to this context: it is not an error to be left less.
        return std::min(static_cast<uint64_t>(static_cast<double>(max_vram_) * gib), all);
    }
    if (max_vram_ < 0.0f) {
        return saturating_sub(all, static_cast<uint64_t>(static_cast<double>(-max_vram_) * gib));
    }
    const auto given_up = given_up_.find(dev);
    const uint64_t reserve = device_reserve(total, all);
    return all - (given_up != given_up_.end() ? std::min(given_up->second.reserve, reserve) : reserve);
}

bool MemoryBudget::give_up_reserve(ggml_backend_dev_t dev, uint64_t needed) {
    if (max_vram_ != 0.0f || bytes(dev) >= needed) {
        return false;
    }
    const uint64_t all = reachable(dev);
    if (all < needed) {
        return false;
    }
    given_up_[dev] = {std::min(all / crowded_share, all - needed), needed};
    return true;
}

uint64_t MemoryBudget::fixed(ggml_backend_dev_t dev) const {
    const auto more = others_.find(dev);
    return placements_.weights_on(dev) + (more != others_.end() ? more->second : 0);
}

uint64_t MemoryBudget::held(ggml_backend_dev_t dev, const Streamer* but) const {
    uint64_t bytes = fixed(dev);
    for (const Streamer* streamer : streamers_) {
        bytes += streamer != but && streamer->dev() == dev ? streamer->held() : 0;
    }
    return bytes;
}

uint64_t MemoryBudget::held_by_active(ggml_backend_dev_t dev, const Streamer* but) const {
    uint64_t bytes = fixed(dev);
    for (const Streamer* streamer : streamers_) {
        bytes += streamer != but && streamer->dev() == dev && streamer->active() ? streamer->held() : 0;
    }
    return bytes;
}

uint64_t MemoryBudget::left(ggml_backend_dev_t dev) const {
    return saturating_sub(bytes(dev), held(dev));
}

void MemoryBudget::make_room(ggml_backend_dev_t dev, uint64_t wanted, const Streamer* but) {
    const auto can_evict = [&](const Streamer* streamer) {
        return streamer != but && streamer->dev() == dev && !streamer->active();
    };
    // Asking the device for its free memory takes its time.
    if (std::none_of(streamers_.begin(), streamers_.end(),
                     [&](const Streamer* streamer) { return can_evict(streamer) && streamer->held() > 0; })) {
        return;
    }
    const uint64_t budget = bytes(dev);
    for (Streamer* streamer : streamers_) {
        const uint64_t all = held(dev, but) + wanted;
        if (all <= budget) {
            return;
        }
        if (can_evict(streamer)) {
            streamer->evict(all - budget);
        }
    }
}

void MemoryBudget::make_all_room(ggml_backend_dev_t dev, const Streamer* but) {
    make_room(dev, UINT64_MAX / 2, but);
}

void MemoryBudget::shrink(ggml_backend_dev_t dev, uint64_t bytes, const Streamer* but) {
    for (Streamer* streamer : streamers_) {
        if (streamer != but && streamer->dev() == dev && bytes > 0) {
            bytes = saturating_sub(bytes, streamer->shrink(bytes));
        }
    }
}

void MemoryBudget::finish_copies() {
    for (Streamer* streamer : streamers_) {
        streamer->finish_copies();
    }
}

void MemoryBudget::begin_generation() {
    for (const auto& [dev, was] : std::exchange(given_up_, {})) {
        if (bytes(dev) < was.needed) {
            given_up_[dev] = was;
        }
    }
    for (Streamer* streamer : streamers_) {
        streamer->begin_generation();
    }
}

}  // namespace sdcpp
