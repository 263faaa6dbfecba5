#include "sdcpp/values/finite.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "sdcpp/api/run.h"
#include "sdcpp/placement/runner_placement.h"
#include "tensor.hpp"
#include "util.h"

namespace {

using namespace sdcpp;

constexpr int64_t block_values = 1 << 16;

// Networks with activations that make 0 of NaN, so that their output does not tell: their weights are looked at once.
bool hides_nan(const std::string& network) {
    return network == "taesd" || network == "taehv" || network == "esrgan";
}

std::string phase_now() {
    const Run* run = run_current();
    return run == nullptr || run->phases.empty() ? "" : run->phases.back().name;
}

// Returns " of picture 2 of 3" and " in the second pass", as far as that says anything.
std::string picture_text(const Run& run, int done) {
    std::string text;
    if (run.pictures > 1) {
        text += " of picture " + std::to_string(done % run.pictures + 1) + " of " + std::to_string(run.pictures);
    }
    if (run.pictures > 0 && done >= run.pictures) {
        text += " in the second pass";
    }
    return text;
}

// Returns what was being done, as the beginning of a message.
std::string sampling_text() {
    const Run* run = run_current();
    if (run == nullptr || run->sampling.steps == 0) {
        return "sampling";
    }
    return "sampling step " + std::to_string(run->sampling.step) + " of " +
           std::to_string(run->sampling.steps) + picture_text(*run, run->sampling.picture);
}

std::string decoding_text() {
    const Run* run = run_current();
    return "decoding" + (run == nullptr ? "" : picture_text(*run, run->decoded % std::max(run->pictures, 1)));
}

std::string doing(const std::string& module) {
    const std::string phase = phase_now();
    if (module == "te") {
        return "text encoding";
    }
    if (module == "vae") {
        return phase == "decoding" ? decoding_text()
               : phase == "sampling" ? "the VAE between two passes or for a preview"
                                     : "encoding a picture";
    }
    if (module == "clip_vision" || module == "photomaker") {
        return "encoding a picture";
    }
    if (module == "upscaler") {
        return "upscaling";
    }
    return phase == "sampling" ? sampling_text() : "computing " + module;
}

std::string advice(const std::string& module) {
    if (module == "vae") {
        return "its sums may be too large for f16: pass another vae=..., one that is made for f16, or for SDXL "
               "force_sdxl_vae_conv_scale=True";
    }
    if (module == "diffusion") {
        return "its sums may be too large for f16, or guidance, LoRAs or noise levels too strong";
    }
    return "its sums may be too large for f16, or the file is damaged";
}

// Returns the name of the first weight that is not finite; "?" for one that has no name, "" when all are finite.
std::string bad_weight(ggml_context* params) {
    std::vector<char> bytes;
    std::vector<float> values;
    for (ggml_tensor* t = ggml_get_first_tensor(params); t != nullptr; t = ggml_get_next_tensor(params, t)) {
        const auto* traits = ggml_get_type_traits(t->type);
        if (t->buffer == nullptr || t->view_src != nullptr || !ggml_is_contiguous(t) ||
            (t->type != GGML_TYPE_F32 && traits->to_float == nullptr)) {
            continue;
        }
        const int64_t count = ggml_nelements(t);
        const int64_t block = std::max(block_values / t->ne[0], int64_t{1}) * t->ne[0];
        for (int64_t at = 0; at < count; at += block) {
            const int64_t some = std::min(block, count - at);
            const size_t begin = ggml_row_size(t->type, at);
            bytes.resize(ggml_row_size(t->type, some));
            values.resize(static_cast<size_t>(some));
            ggml_backend_tensor_get(t, bytes.data(), begin, bytes.size());
            if (t->type == GGML_TYPE_F32) {
                std::memcpy(values.data(), bytes.data(), bytes.size());
            } else {
                traits->to_float(bytes.data(), values.data(), some);
            }
            if (!all_finite(values.data(), some)) {
                return t->name[0] != '\0' ? t->name : "?";
            }
        }
    }
    return "";
}

[[noreturn]] void fail(const std::string& what, const std::string& why) {
    throw NotFinite(what + " gave values that are not finite (NaN or infinite): " + why);
}

void weights_check(Placement& placement, const std::string& network, ggml_context* params) {
    const std::string weight = params == nullptr ? "" : bad_weight(params);
    if (!weight.empty()) {
        const std::string named = weight == "?" ? "a weight of it" : "its weight '" + weight + "'";
        fail(doing(placement.module) + " (" + network + ")",
             named + " is not finite: the file is damaged, or its values are too large for the type that they are "
                     "converted to");
    }
}

}  // namespace

namespace sdcpp {

bool all_finite(const float* values, int64_t count) {
    // A float whose exponent bits are all set is none; without a branch, so that the loop is as fast as memory.
    constexpr uint32_t exponent = 0x7f800000u;
    while (count > 0) {
        const int64_t some = std::min(count, block_values);
        uint32_t bad = 0;
        for (int64_t i = 0; i < some; ++i) {
            uint32_t bits;
            std::memcpy(&bits, values + i, sizeof bits);
            bad |= static_cast<uint32_t>((bits & exponent) == exponent);
        }
        if (bad != 0) {
            return false;
        }
        values += some;
        count -= some;
    }
    return true;
}

void output_check(Placement& placement, const std::string& network, ggml_context* params, const float* values,
                  int64_t count) {
    if (hides_nan(network) && !placement.weights_checked) {
        weights_check(placement, network, params);
        placement.weights_checked = true;
    }
    if (!all_finite(values, count)) {
        weights_check(placement, network, params);
        fail(doing(placement.module) + " (" + network + ")", advice(placement.module));
    }
}

void text_check(const float* values, int64_t count) {
    if (!all_finite(values, count)) {
        fail("text encoding", "a weight in the prompt is too large: write one such as (word:1.2)");
    }
}

void sampling_step_check(const float* values, int64_t count, int step, int steps) {
    if (!all_finite(values, count)) {
        fail(sampling_text(), advice("diffusion"));
    }
    sampling_step_begin(step, steps);
}

void sampling_end(const sd::Tensor<float>& latents) {
    if (!all_finite(latents.data(), latents.numel())) {
        fail(sampling_text(), advice("diffusion"));
    }
    if (Run* run = run_current()) {
        run->sampling.steps = 0;
        const int number = run->sampled();
        ++run->sampling.picture;
        if (number >= 0 && run->finished.decode) {
            run->finished.latents.emplace(number, latents);
        }
    }
}

void picture_decoded(const sd::Tensor<float>& picture) {
    if (!all_finite(picture.data(), picture.numel())) {
        fail(decoding_text(), advice("vae"));
    }
    Run* const run = run_current();
    if (run == nullptr || picture.empty() || run->pictures == 0) {
        return;
    }
    if (run->callbacks.picture != nullptr) {
        if (run->decoded == 0) {
            run->note_loras();
        }
        const sd_image_t image = tensor_to_sd_image(picture);
        const std::unique_ptr<uint8_t, decltype(&std::free)> pixels(image.data, std::free);
        run->callbacks.picture(&image, run->callbacks.data);
    }
    if (++run->decoded < run->sampled()) {
        run->progressed(0, 0, 0.0);
    }
}

}  // namespace sdcpp
