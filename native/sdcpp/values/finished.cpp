#include "sdcpp/values/finished.h"

#include <cstdlib>
#include <utility>

#include "sdcpp/api/run.h"
#include "sdcpp/values/finite.h"

namespace sdcpp {

Finished::~Finished() {
    clear();
}

void Finished::clear() {
    for (const sd_image_t& picture : pictures) {
        std::free(picture.data);
    }
    pictures.clear();
    latents.clear();
}

FinishedScope::FinishedScope(bool two_passes, Decode decode) : decode(std::move(decode)) {
    if (Run* run = run_current()) {
        run->passes = two_passes ? 2 : 1;
    }
}

FinishedScope::~FinishedScope() {
    Run* const run = run_current();
    if (run == nullptr) {
        return;
    }
    Finished& finished = run->finished;
    if (run->decoded == run->pictures) {
        finished.clear();  // the caller gets them all
    }
    const auto sampled = std::move(finished.latents);
    finished.latents.clear();
    if (sampled.size() == static_cast<size_t>(run->pictures) || run->cancelled || run->is_broken()) {
        return;
    }
    try {
        for (const auto& latents : sampled) {
            const sd::Tensor<float> picture = decode(latents);
            if (picture.empty()) {
                break;
            }
            picture_decoded(picture);
        }
    } catch (...) {
        // What failed first is told, and what was decoded before this is kept.
    }
    run->stopping = false;  // a cancel that came meanwhile does not hide it either
}

}  // namespace sdcpp
