// Values that are not finite end a run where they first appear: in the output of a network, in the latents between two
// sampling steps, in the conditions made of a text. Pixels would show them as white or black.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

struct ggml_context;
namespace sd {
template <typename T>
class Tensor;
}

namespace sdcpp {

struct Placement;

// A network or a sampler gave values that are not finite; the message names the phase, the picture and the likely cause.
struct NotFinite : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Tells whether every one of count values is finite.
bool all_finite(const float* values, int64_t count);

// Throws NotFinite unless all values that a network gave are finite; params holds its weights, of which one that is not
// finite is named.
void output_check(Placement& placement, const std::string& network, ggml_context* params, const float* values,
                  int64_t count);

// Returns what a network gave, of floats once they are checked.
template <typename Output>
Output checked_output(Placement& placement, const std::string& network, ggml_context* params, Output output) {
    if constexpr (std::is_same_v<decltype(output.data()), float*>) {
        output_check(placement, network, params, output.data(), output.numel());
    }
    return output;
}

// Throws NotFinite unless all values of the conditions that were made of the texts are finite. Their vectors are not
// looked at: Chroma keeps a mask there, which is infinite.
void text_check(const float* values, int64_t count);
template <typename... Conditions>
void conditions_check(const Conditions&... conditions) {
    (text_check(conditions.c_crossattn.data(), conditions.c_crossattn.numel()), ...);
}

// Notes that the network is about to be asked in a sampling step, counted from 1 (or from -1, where the step asks again),
// and throws NotFinite unless the latents that it is asked for are finite.
void sampling_step_check(const float* values, int64_t count, int step, int steps);
template <typename Latents>
void sampling_step(const Latents& latents, int step, size_t steps) {
    sampling_step_check(latents.data(), latents.numel(), step, static_cast<int>(steps));
}

// Notes that a picture is sampled, and keeps its latents; throws NotFinite unless they are finite.
void sampling_end(const sd::Tensor<float>& latents);

// Notes that a picture, or a video, is decoded, and hands the picture to the caller; throws NotFinite unless its pixels are
// finite.
void picture_decoded(const sd::Tensor<float>& picture);

}  // namespace sdcpp
