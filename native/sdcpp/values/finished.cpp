#include "sdcpp/values/finished.h"

#include <utility>

#include "sdcpp/api/run.h"
#include "sdcpp/values/finite.h"

namespace sdcpp {

namespace {

// Decodes what is sampled; false when a picture could not be.
bool decode_sampled(Run& run) {
    for (const auto& entry : std::exchange(run.finished.latents, {})) {
        const sd::Tensor<float> picture = run.finished.decode(entry.second);
        picture_decoded(picture);
        if (picture.empty()) {
            return false;
        }
    }
    return true;
}

}  // namespace

FinishedScope::FinishedScope(bool two_passes, decltype(Finished::decode) decode) {
    if (Run* run = run_current()) {
        run->passes = two_passes ? 2 : 1;
        run->finished.decode = std::move(decode);
    }
}

FinishedScope::~FinishedScope() {
    Run* const run = run_current();
    if (run == nullptr) {
        return;
    }
    const bool failed = run->decoded + run->finished.latents.size() < static_cast<size_t>(run->pictures);
    if (failed && !run->cancelled && !run->is_broken()) {
        try {
            decode_sampled(*run);
        } catch (...) {
            // What failed first is told, and what was decoded before this is kept.
        }
        run->stopping = false;  // a cancel that came meanwhile does not hide it either
    }
    run->finished = {};
}

bool finish_sampled() {
    Run* const run = run_current();
    if (run == nullptr || run->callbacks.picture == nullptr || run->finished.latents.empty()) {
        return true;
    }
    run->phase_begin("decoding");
    const bool decoded = decode_sampled(*run);
    run->phase_begin("sampling");
    return decoded;
}

sd::Tensor<float> finished_picture(size_t number, const std::function<sd::Tensor<float>()>& decode) {
    const Run* const run = run_current();
    const bool handed_over = run != nullptr && run->callbacks.picture != nullptr;
    if (!handed_over || number >= static_cast<size_t>(run->decoded)) {
        sd::Tensor<float> picture = decode();
        picture_decoded(picture);
        if (!handed_over || picture.empty()) {
            return picture;
        }
    }
    return sd::zeros<float>({1, 1, 3, 1});
}

}  // namespace sdcpp
