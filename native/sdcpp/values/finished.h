// The pictures of a batch that are done, kept for the case that a later one fails.
#pragma once

#include <functional>
#include <vector>

#include "stable-diffusion.h"
#include "tensor.hpp"

namespace sdcpp {

// What a run has of them. Pixels are allocated with malloc, as the engine's.
struct Finished {
    Finished() = default;
    ~Finished();
    Finished(const Finished&) = delete;
    Finished& operator=(const Finished&) = delete;
    void clear();

    std::vector<sd::Tensor<float>> latents;  // sampled in the last pass
    std::vector<sd_image_t> pictures;
};

// Keeps the pictures of this thread's run from here to the end of the scope. When a later one cannot be sampled, those that
// are sampled are decoded at that end, which no cancel waits for.
class FinishedScope {
public:
    using Decode = std::function<sd::Tensor<float>(const sd::Tensor<float>&)>;
    FinishedScope(bool two_passes, Decode decode);
    ~FinishedScope();
    FinishedScope(const FinishedScope&) = delete;
    FinishedScope& operator=(const FinishedScope&) = delete;

private:
    const Decode decode;
};

}  // namespace sdcpp
