#include "sdcpp/values/noise_levels.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "model.h"
#include "sdcpp/autoencoder/autoencoder.h"
#include "sdcpp/prompt/attention.h"
#include "sdcpp/values/refused.h"

namespace {

using sdcpp::Refused;
using Levels = std::vector<float>;

constexpr float flow_sigma_max = 1.5f;      // that of flow models is 1, that of the others 14 and more
constexpr uint32_t most_table_steps = 10'000;  // what interpolating a table's levels is exact enough for
constexpr int most_second_steps = 1'000'000;

std::string count_text(uint32_t steps) {
    return std::to_string(steps) + (steps == 1 ? " step" : " steps");
}

// Returns what is wrong with noise levels, or "".
std::string fault_of(const Levels& levels) {
    if (levels.size() < 2) {
        return "fewer than two";
    }
    for (size_t i = 0; i < levels.size(); ++i) {
        if (!std::isfinite(levels[i])) {
            return "some that are not finite";
        }
        if (levels[i] < 0.0f || (levels[i] == 0.0f && i + 1 < levels.size())) {
            return "some that are not above 0 before the last";
        }
        if (i > 0 && levels[i] > levels[i - 1]) {
            return "some that ascend";
        }
    }
    return "";
}

// Refuses what a scheduler's definition, or the table that it consists of, does not cover.
void definition_check(scheduler_t scheduler, uint32_t steps, SDVersion version, bool flow) {
    const std::string name = sd_scheduler_name(scheduler);
    if (steps < 1) {
        throw Refused("scheduler " + name + " needs at least 1 step");
    }
    if (scheduler != GITS_SCHEDULER && scheduler != AYS_SCHEDULER) {
        return;
    }
    if (scheduler == AYS_SCHEDULER &&
        !(sd_version_is_sd1(version) || sd_version_is_sdxl(version) || version == VERSION_SVD)) {
        throw Refused("scheduler ays has noise levels for SD 1, SDXL and SVD only, not for this model; use discrete, "
                      "simple or sgm_uniform");
    }
    if (scheduler == GITS_SCHEDULER && flow) {
        throw Refused("scheduler gits has noise levels for SD models only, not for this flow model; use discrete, simple "
                      "or sgm_uniform");
    }
    if (scheduler == GITS_SCHEDULER && steps < 2) {
        throw Refused("scheduler gits needs at least 2 steps, not 1; use discrete, simple or sgm_uniform");
    }
    if (steps > most_table_steps) {
        throw Refused("scheduler " + name + " takes at most " + std::to_string(most_table_steps) + " steps, not " +
                      std::to_string(steps));
    }
}

// Refuses an eta that a step's formula has no real number for: the noise would be more than there is.
void eta_check(const std::string& sampler, float eta, bool real) {
    if (!real) {
        throw Refused("sampler " + sampler + " cannot take eta " + std::to_string(eta) +
                      " along these noise levels: pass an eta from 0 to 1, or another scheduler");
    }
}

// What the engine's formula for a step of ddim_trailing takes the roots of.
bool ddim_is_real(float level, float next, float eta) {
    const float alpha = 1.0f / (level * level + 1.0f);
    const float alpha_next = 1.0f / (next * next + 1.0f);
    const float variance = ((1.0f - alpha_next) / (1.0f - alpha)) * (1.0f - alpha / alpha_next);
    const double deviation = eta * std::sqrt(variance);
    return std::isfinite(std::sqrt((1.0f - alpha_next - deviation * deviation) / alpha_next));
}

void texts_check(const char* prompt, const char* negative_prompt) {
    sdcpp::prompt_attention(prompt != nullptr ? prompt : "");
    try {
        sdcpp::prompt_attention(negative_prompt != nullptr ? negative_prompt : "");
    } catch (const Refused& error) {
        throw Refused(std::string("negative_") + error.what());  // whose words begin with "prompt: "
    }
}

// The sampler of a request: what it asks for, or the model's own.
sample_method_t sampler_of(sd_ctx_t* ctx, const sd_sample_params_t& params) {
    return params.sample_method == SAMPLE_METHOD_COUNT ? sd_get_default_sample_method(ctx) : params.sample_method;
}

// Not given it is infinite, and then the engine's own, of which none is above 1.
float eta_of(const sd_sample_params_t& params) {
    return std::isfinite(params.eta) ? params.eta : 0.0f;
}

// The noise levels of a request for a number of steps, unless it brings its own.
Levels levels_of(sd_ctx_t* ctx, const sdcpp::LevelsOf& of, const sd_sample_params_t& params, int steps) {
    if (params.custom_sigmas_count > 0) {
        return {params.custom_sigmas, params.custom_sigmas + params.custom_sigmas_count};
    }
    const scheduler_t scheduler =
        params.scheduler == SCHEDULER_COUNT ? sd_get_default_scheduler(ctx, sampler_of(ctx, params)) : params.scheduler;
    return sdcpp::model_levels(ctx, of, scheduler, steps);
}

bool is_flow(sd_ctx_t* ctx, const sdcpp::LevelsOf& of) {
    return !(sdcpp::model_levels(ctx, of, DISCRETE_SCHEDULER, 1).front() > flow_sigma_max);
}

// Returns how many of a pair's steps are the high-noise model's, as the engine counts them.
size_t high_noise_steps(const sd_vid_gen_params_t& request, const Levels& levels) {
    const int total = static_cast<int>(levels.size()) - 1;
    const int wanted = request.high_noise_sample_params.sample_steps;
    if (wanted >= 0) {
        const bool custom = request.sample_params.custom_sigmas_count > 0;
        return static_cast<size_t>(custom ? std::max(total - request.sample_params.sample_steps, 0) : wanted);
    }
    const auto below =
        std::find_if(levels.begin(), levels.end(), [&](float level) { return level < request.moe_boundary; });
    return below == levels.end() ? 0 : static_cast<size_t>(below - levels.begin());
}

}  // namespace

namespace sdcpp {

std::vector<float> scheduled_levels(scheduler_t scheduler, uint32_t steps, int version, float sigma_max,
                                    const std::function<std::vector<float>()>& engine_levels) {
    definition_check(scheduler, steps, static_cast<SDVersion>(version), !(sigma_max > flow_sigma_max));
    if (steps == 1 && (scheduler == KARRAS_SCHEDULER || scheduler == EXPONENTIAL_SCHEDULER)) {
        // Both go from the highest level in even parts of a power and of the logarithm: a single step is at their start.
        return {sigma_max, 0.0f};
    }
    Levels levels = engine_levels();
    std::string fault = fault_of(levels);
    if (fault.empty() && (levels.size() != steps + 1 || levels.back() != 0.0f)) {
        fault = "some that do not end in 0 after the last step";
    }
    if (!fault.empty()) {
        const bool flow = !(sigma_max > flow_sigma_max);
        throw Refused("scheduler " + std::string(sd_scheduler_name(scheduler)) + " gives this model " + fault + " at " +
                      count_text(steps) + ", of noise levels that must be finite and descend to 0; use another number "
                      "of steps or scheduler" + (flow ? ", or another flow_shift" : ""));
    }
    return levels;
}

void sampler_check(sample_method_t sampler, float eta, const std::vector<float>& levels, bool is_flow) {
    const std::string name = sd_sample_method_name(sampler);
    const std::string fault = fault_of(levels);
    if (!fault.empty()) {
        throw Refused("sigmas must be at least two noise levels that are finite and descend, all above 0 but the last; "
                      "there are " + fault);
    }
    if (is_flow && levels.back() >= 1.0f) {
        throw Refused("sigmas of a flow model must end below 1, usually in 0");
    }
    const auto repeats = [&](size_t i) { return levels[i] == levels[i + 1]; };
    for (size_t i = 0; i + 1 < levels.size(); ++i) {
        const bool last = levels[i + 1] == 0.0f;
        if (sampler == DDIM_TRAILING_SAMPLE_METHOD) {
            eta_check(name, eta, ddim_is_real(levels[i], levels[i + 1], eta));
        } else if (sampler == TCD_SAMPLE_METHOD) {
            eta_check(name, eta, eta <= 1.0f);
        } else if (is_flow && sampler == DPMPP2S_A_SAMPLE_METHOD && levels[i] > 1.0f) {
            throw Refused("sampler " + name + " needs sigmas from 1 to 0 for a flow model, as others do not");
        } else if ((sampler == IPNDM_V_SAMPLE_METHOD && i == 1 && repeats(0)) ||
                   (sampler == DPMPP2Mv2_SAMPLE_METHOD && i > 0 && !last && repeats(i - 1) && repeats(i))) {
            throw Refused("sampler " + name + " cannot go along noise levels that repeat, as these do; use fewer steps, "
                          "or another sampler or scheduler");
        }
    }
}

void request_check(sd_ctx_t* ctx, const sd_img_gen_params_t& request) {
    texts_check(request.prompt, request.negative_prompt);
    const sd_sample_params_t& params = request.sample_params;
    const LevelsOf of{params.flow_shift, request.width, request.height};
    const sample_method_t sampler = sampler_of(ctx, params);
    const float eta = eta_of(params);
    const Levels levels = levels_of(ctx, of, params, params.sample_steps);
    const bool flow = is_flow(ctx, of);
    sampler_check(sampler, eta, levels, flow);
    const sd_hires_params_t& hires = request.hires;
    if (!hires.enabled) {
        return;
    }
    // The engine's own: as many levels as leave the wanted steps below the strength.
    const int wanted = hires.steps > 0 ? hires.steps : static_cast<int>(levels.size()) - 1;
    const double all = static_cast<double>(wanted) / hires.denoising_strength;
    if (!(all >= 1.0 && all <= most_second_steps)) {
        throw Refused("hires: " + std::to_string(wanted) + " steps at a denoising_strength of " +
                      std::to_string(hires.denoising_strength) +
                      " are too small a part of a schedule; pass fewer steps or a greater strength");
    }
    const int steps = static_cast<int>(static_cast<float>(wanted) / hires.denoising_strength);
    Levels second = model_levels(ctx, of, params.scheduler, steps);
    const auto kept = std::min(static_cast<size_t>(static_cast<float>(steps) * hires.denoising_strength),
                               static_cast<size_t>(steps) - 1);
    second.erase(second.begin(), second.begin() + (steps - static_cast<int>(kept) - 1));
    sampler_check(sampler, eta, second, flow);
}

void request_check(sd_ctx_t* ctx, const sd_vid_gen_params_t& request) {
    texts_check(request.prompt, request.negative_prompt);
    const sd_sample_params_t& params = request.sample_params;
    const sd_sample_params_t& high = request.high_noise_sample_params;
    const LevelsOf of{params.flow_shift, request.width, request.height};
    const bool pair = abilities_of(ctx).is_pair;
    const int steps = params.sample_steps + (pair ? std::max(0, high.sample_steps) : 0);
    Levels levels = levels_of(ctx, of, params, steps);
    const bool flow = is_flow(ctx, of);
    if (pair) {
        sampler_check(sampler_of(ctx, params), eta_of(params), levels, flow);
        const size_t first = high_noise_steps(request, levels);
        if (first < 1 || first + 1 >= levels.size()) {
            throw Refused("of " + count_text(static_cast<uint32_t>(levels.size() - 1)) + " the " +
                          (first < 1 ? "high-noise" : "low-noise") +
                          " model gets none: pass more steps, another moe_boundary, or high_noise_steps");
        }
        Levels second(levels.begin() + static_cast<std::ptrdiff_t>(first), levels.end());
        levels.resize(first + 1);
        sampler_check(sampler_of(ctx, high), eta_of(high), levels, flow);
        levels = std::move(second);
    }
    sampler_check(sampler_of(ctx, params), eta_of(params), levels, flow);
}

}  // namespace sdcpp
