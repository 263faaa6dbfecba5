// The noise levels (sigmas) that a picture is sampled at: those of a scheduler where its definition gives some, and
// whether a sampler can go along them. Nothing is sampled along levels that are not finite or that ascend.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "stable-diffusion.h"

namespace sdcpp {

// Returns a scheduler's noise levels for a number of steps: one more than steps, finite, not ascending, above 0 but for
// the last, which is 0. Throws Refused where its definition gives none, or where the engine's function gives others.
// version is the engine's model version, sigma_max the model's highest noise level.
std::vector<float> scheduled_levels(scheduler_t scheduler, uint32_t steps, int version, float sigma_max,
                                    const std::function<std::vector<float>()>& engine_levels);

// Throws Refused unless a sampler gets to the end of some noise levels with finite factors. A flow model is one that goes
// straight from noise to picture, with noise levels from 1 to 0.
void sampler_check(sample_method_t sampler, float eta, const std::vector<float>& levels, bool is_flow);

// Throws Refused unless a request's texts can be read and its noise levels can be sampled, those of its second pass too.
void request_check(sd_ctx_t* ctx, const sd_img_gen_params_t& request);
// The same of a video; where a pair of models draws it, each must get a step.
void request_check(sd_ctx_t* ctx, const sd_vid_gen_params_t& request);

// What a flow model's noise levels depend on beside scheduler and steps.
struct LevelsOf {
    float flow_shift;
    int width;
    int height;
};

// Returns a scheduler's noise levels for a loaded model.
std::vector<float> model_levels(sd_ctx_t* ctx, const LevelsOf& of, scheduler_t scheduler, int steps);

}  // namespace sdcpp
