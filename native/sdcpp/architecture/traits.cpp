#include "sdcpp/architecture/traits.h"

#include <algorithm>
#include <regex>

#include "sdcpp/architecture/checkpoint.h"

extern const char* model_version_to_str[];

namespace {

// Returns how many layers of a kind there are: one more than the highest number behind a prefix.
int layers_of(const std::map<std::string, ggml_tensor*>& params, const std::string& prefix) {
    int most = 0;
    for (auto each = params.lower_bound(prefix); each != params.end() && starts_with(each->first, prefix); ++each) {
        most = std::max(most, std::atoi(each->first.c_str() + prefix.size()) + 1);
    }
    return most;
}

}  // namespace

sdcpp_traits_t sdcpp::traits_of(SDVersion version, const std::map<std::string, ggml_tensor*>& params) {
    const std::string network = "model.diffusion_model.";
    sdcpp_traits_t traits{};
    traits.family = model_version_to_str[version];
    traits.unet = sd_version_is_unet(version);
    traits.sdxl = sd_version_is_sdxl(version);
    traits.image_guidance = sd_version_is_inpaint_or_unet_edit(version);
    traits.distilled_guidance = params.count(network + "guidance_in.in_layer.weight") != 0;
    traits.chroma = params.count(network + "distilled_guidance_layer.in_proj.weight") != 0;
    traits.clip_tokens = traits.unet || sd_version_is_sd3(version);
    traits.qwen_image = sd_version_is_qwen_image(version);
    // Other transformers take the list of layers and look at none of it.
    if (sd_version_is_sd3(version)) {
        traits.skippable_layers = layers_of(params, network + "joint_blocks.");
    } else if (sd_version_is_flux(version) || sd_version_is_flux2(version)) {
        traits.skippable_layers =
            layers_of(params, network + "double_blocks.") + layers_of(params, network + "single_blocks.");
    }
    return traits;
}

void sdcpp::type_rules_check(const std::string& rules, const std::map<std::string, ggml_tensor*>& params) {
    for (const std::string& rule : split_string(rules, ',')) {
        const size_t equals = rule.find('=');
        if (equals == std::string::npos || equals == 0) {
            continue;  // a pattern that every name has
        }
        const std::string pattern = rule.substr(0, equals);
        bool found = false;
        try {
            const std::regex expression(pattern);
            found = std::any_of(params.begin(), params.end(),
                                [&](const auto& each) { return std::regex_search(each.first, expression); });
        } catch (const std::regex_error&) {
            checkpoint::fail("tensor_type_rules: '%s' is no regular expression", pattern.c_str());
        }
        if (!found) {
            checkpoint::fail("tensor_type_rules: '%s' is in no name of a tensor of this model, such as '%s'",
                             pattern.c_str(), params.empty() ? "" : params.begin()->first.c_str());
        }
    }
}
