#include "sdcpp/architecture/check.h"

#include <algorithm>

#include "sdcpp/architecture/checkpoint.h"
#include "sdcpp/architecture/flux.h"
#include "sdcpp/architecture/llm.h"
#include "sdcpp/architecture/mmdit.h"
#include "sdcpp/architecture/traits.h"
#include "sdcpp/architecture/unet.h"
#include "sdcpp/architecture/wan.h"
#include "sdcpp/disk/disk_weights.h"
#include "sdcpp/placement/context_placements.h"

bool is_unused_tensor(const std::string& name);

namespace sdcpp {

using namespace checkpoint;

// Counts, for a survey, what of each module's weights could stay in the model's files.
static void count_stored(Placements& placements, const String2TensorStorage& file) {
    for (const auto& [weights, module] : placements.surveyed_weights) {
        for (ggml_tensor* t = ggml_get_first_tensor(weights); t != nullptr; t = ggml_get_next_tensor(weights, t)) {
            if (const TensorStorage* stored = find(file, ggml_get_name(t))) {
                count_stored(*stored, t, placements.surveyed[module]);
            }
        }
    }
}

void architecture_check(SDVersion version, const std::map<std::string, ggml_tensor*>& params,
                        const String2TensorStorage& file) {
    std::string first;
    bool first_is_shape = false;
    size_t misfits = 0;
    for (const auto& [name, param] : params) {
        ggml_set_name(param, name.c_str());
        const TensorStorage* tensor = is_unused_tensor(name) ? nullptr : find(file, name);
        if (tensor == nullptr) {
            // The engine's loader lets these two go, and so must this check.
            if (contains(name, "alphas_cumprod") ||
                contains(name, "cond_stage_model.transformer.text_model.encoder.layers.23")) {
                continue;
            }
            if (misfits++ == 0) {
                first = "tensor '" + name + "' of shape " + shape_text(param->ne, ggml_n_dims(param)) +
                        " is missing from the checkpoint";
            }
            continue;
        }
        if (std::equal(param->ne, param->ne + GGML_MAX_DIMS, tensor->ne) &&
            tensor->nelements() == ggml_nelements(param)) {
            continue;
        }
        ++misfits;
        if (!first_is_shape) {
            first_is_shape = true;
            first = "tensor '" + name + "' has shape " + shape_text(*tensor) + ", but the model needs " +
                    shape_text(param->ne, std::max(ggml_n_dims(param), tensor->n_dims));
        }
    }
    if (misfits > 1) {
        fail("%s (and %zu more tensors do not fit)", first.c_str(), misfits - 1);
    }
    if (misfits == 1) {
        fail("%s", first.c_str());
    }
    if (Placements* placements = placements_current(); placements != nullptr && version != VERSION_COUNT) {
        count_stored(*placements, file);
        own_files_check(placements->parts, params, file);
        type_rules_check(placements->type_rules, params);
        placements->traits = traits_of(version, params);
    }
    if (sd_version_is_unet(version)) {
        unet_fit(version, params);
    } else if (sd_version_is_sd3(version)) {
        mmdit_fit(params);
    } else if (sd_version_is_flux2(version)) {
        llm_fit(params, "model.diffusion_model.txt_in.weight", 3);
    } else if (version == VERSION_OVIS_IMAGE || sd_version_is_qwen_image(version)) {
        llm_fit(params, "model.diffusion_model.txt_in.weight", 1);
    } else if (sd_version_is_flux(version)) {
        flux_fit(params);
    } else if (sd_version_is_z_image(version)) {
        llm_fit(params, "model.diffusion_model.cap_embedder.1.weight", 1);
    } else if (sd_version_is_wan(version)) {
        wan_fit(params);
    }
}

}  // namespace sdcpp
