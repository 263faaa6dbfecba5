// The engine's noise levels and samplers without a model. Part of the engine library in test builds only.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "denoiser.hpp"
#include "rng.hpp"
#include "sdcpp/values/finite.h"
#include "sdcpp/values/noise_levels.h"

namespace {

struct Family {
    SDVersion version;
    std::shared_ptr<Denoiser> denoiser;
};

template <typename Kind>
std::shared_ptr<Denoiser> discrete() {
    auto made = std::make_shared<Kind>();
    // The noise of Stable Diffusion's training: betas from 0.00085 to 0.012, even in their roots.
    double product = 1.0;
    for (int i = 0; i < TIMESTEPS; ++i) {
        const double root = std::sqrt(0.00085) + (std::sqrt(0.012) - std::sqrt(0.00085)) * i / (TIMESTEPS - 1);
        product *= 1.0 - root * root;
        made->sigmas[i] = static_cast<float>(std::sqrt((1.0 - product) / product));
        made->log_sigmas[i] = std::log(made->sigmas[i]);
    }
    return made;
}

std::shared_ptr<Denoiser> flux(float shift) {
    auto made = std::make_shared<FluxFlowDenoiser>();
    made->set_shift(shift);
    return made;
}

Family family(const std::string& name, float shift) {
    if (name == "sd2") {
        return {VERSION_SD2, discrete<CompVisVDenoiser>()};
    }
    if (name == "sdxl") {
        return {VERSION_SDXL, discrete<CompVisDenoiser>()};
    }
    if (name == "edm") {
        return {VERSION_SDXL, discrete<EDMVDenoiser>()};
    }
    if (name == "sd3") {
        return {VERSION_SD3, std::make_shared<DiscreteFlowDenoiser>(shift)};
    }
    if (name == "flux") {
        return {VERSION_FLUX, flux(shift)};
    }
    if (name == "flux2") {
        return {VERSION_FLUX2, std::make_shared<Flux2FlowDenoiser>()};
    }
    return {VERSION_SD1, discrete<CompVisDenoiser>()};
}

int said(char* text, size_t size, const char* what) {
    std::strncpy(text, what, size - 1);
    text[size - 1] = '\0';
    return -1;
}

}  // namespace

extern "C" {

// Gives the noise levels of a family ("sd1", "sd2", "sdxl", "edm", "sd3", "flux" or "flux2") and returns how many there
// are, or -1 with what was said.
SD_API int sdcpp_probe_levels(const char* name, float shift, const char* scheduler, int steps, float* levels,
                              int capacity, char* text, size_t text_size) {
    try {
        const Family made = family(name, shift);
        const auto found = made.denoiser->get_sigmas(static_cast<uint32_t>(steps), 4096, str_to_scheduler(scheduler),
                                                     made.version);
        std::copy_n(found.begin(), std::min(found.size(), static_cast<size_t>(capacity)), levels);
        return static_cast<int>(found.size());
    } catch (const std::exception& error) {
        return said(text, text_size, error.what());
    }
}

// Tells whether all values are finite.
SD_API bool sdcpp_probe_finite(const float* values, int64_t count) {
    return sdcpp::all_finite(values, count);
}

// Samples along some noise levels, with a model that pulls towards a picture. Returns 1 when what comes is finite, 0 when
// it is not, -1 with what was said when the levels were refused.
SD_API int sdcpp_probe_sample(const char* sampler, bool is_flow, float eta, const float* levels, int count, char* text,
                              size_t text_size) {
    try {
        const sample_method_t method = str_to_sample_method(sampler);
        const std::vector<float> along(levels, levels + count);
        sdcpp::sampler_check(method, eta, along, is_flow);
        auto rng = std::make_shared<STDDefaultRNG>();
        rng->manual_seed(1);
        const sd::Tensor<float> start = sd::Tensor<float>::randn({4, 4, 4, 1}, rng) * along.front();
        const auto model = [](const sd::Tensor<float>& x, float sigma, int) -> sd::Tensor<float> {
            return x * (1.0f / (1.0f + sigma * sigma)) + 0.1f;
        };
        const sd::Tensor<float> end = sample_k_diffusion(method, model, start, along, rng, eta, is_flow);
        return end.numel() > 0 && sdcpp::all_finite(end.data(), end.numel()) ? 1 : 0;
    } catch (const std::exception& error) {
        return said(text, text_size, error.what());
    }
}

}  // extern "C"
