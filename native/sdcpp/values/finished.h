// The pictures of a batch that are sampled, and those of them that are decoded, which the caller hears of at once.
#pragma once

#include <functional>
#include <map>

#include "stable-diffusion.h"
#include "tensor.hpp"

namespace sdcpp {

// What a run has of them, by number.
struct Finished {
    // Sampled in the last pass, and not decoded.
    std::map<int, sd::Tensor<float>> latents;
    std::function<sd::Tensor<float>(const sd::Tensor<float>&)> decode;  // NULL: nothing is kept
};

// Keeps the pictures of this thread's run from here to the end of the scope. When a later one cannot be sampled, those that
// are sampled are decoded at that end, which no cancel waits for.
class FinishedScope {
public:
    FinishedScope(bool two_passes, decltype(Finished::decode) decode);
    ~FinishedScope();
    FinishedScope(const FinishedScope&) = delete;
    FinishedScope& operator=(const FinishedScope&) = delete;
};

// Decodes what is sampled while more pictures are to come, so that a caller has the first ones when a later one is
// cancelled or fails; false when one could not be decoded.
bool finish_sampled();
// Decodes a picture unless finish_sampled has. Returns it, or, once the caller has it, a pixel in its place: a batch is
// not held twice.
sd::Tensor<float> finished_picture(size_t number, const std::function<sd::Tensor<float>()>& decode);

}  // namespace sdcpp
