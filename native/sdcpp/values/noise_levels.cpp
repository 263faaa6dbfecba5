#include "sdcpp/values/noise_levels.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "model.h"
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
    prompt_attention(request.prompt != nullptr ? request.prompt : "");
    prompt_attention(request.negative_prompt != nullptr ? request.negative_prompt : "");
    const sd_sample_params_t& params = request.sample_params;
    const sample_method_t sampler =
        params.sample_method == SAMPLE_METHOD_COUNT ? sd_get_default_sample_method(ctx) : params.sample_method;
    const scheduler_t scheduler =
        params.scheduler == SCHEDULER_COUNT ? sd_get_default_scheduler(ctx, sampler) : params.scheduler;
    // Not given it is infinite, and then the engine's own, of which none is above 1.
    const float eta = std::isfinite(params.eta) ? params.eta : 0.0f;
    const Levels levels =
        params.custom_sigmas_count > 0
            ? Levels(params.custom_sigmas, params.custom_sigmas + params.custom_sigmas_count)
            : model_levels(ctx, request, scheduler, params.sample_steps);
    const bool flow = !(model_levels(ctx, request, DISCRETE_SCHEDULER, 1).front() > flow_sigma_max);
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
    Levels second = model_levels(ctx, request, params.scheduler, steps);
    const auto kept = std::min(static_cast<size_t>(static_cast<float>(steps) * hires.denoising_strength),
                               static_cast<size_t>(steps) - 1);
    second.erase(second.begin(), second.begin() + (steps - static_cast<int>(kept) - 1));
    sampler_check(sampler, eta, second, flow);
}

}  // namespace sdcpp
