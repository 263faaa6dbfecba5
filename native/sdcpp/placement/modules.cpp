// The table of modules and networks.
#include "sdcpp/placement/modules.h"

#include <algorithm>
#include <stdexcept>

namespace {

const std::string lora_suffix = ".lora";

struct Module {
    const char* name;
    std::vector<std::string> networks;  // what the engine's runners describe themselves as
};

const std::vector<Module> modules = {
    {"diffusion", {"anima", "ernie_image", "flux", "mmdit", "qwen_image", "unet", "wan", "z_image"}},
    {"te", {"clip", "ministral3.3b", "mistral_small3.2", "qwen2.5vl", "qwen3", "t5"}},
    {"clip_vision", {"clip_vision"}},
    {"vae", {"fake_vae", "taehv", "taesd", "vae", "wan_vae"}},
    {"controlnet", {"control_net"}},
    {"photomaker", {"id_embeds", "pmid"}},
    {"upscaler", {"esrgan"}},
};

std::vector<std::string> names_of_modules() {
    std::vector<std::string> names;
    for (const Module& module : modules) {
        names.emplace_back(module.name);
    }
    return names;
}

}  // namespace

namespace sdcpp {

const std::vector<std::string> module_names = names_of_modules();

std::string module_of_network(const std::string& description) {
    if (description == "lora") {
        return "";
    }
    // The video networks say which one they are: "Wan2.1-T2V-14B".
    const std::string network = description.rfind("Wan", 0) == 0 ? "wan" : description;
    for (const Module& module : modules) {
        if (std::find(module.networks.begin(), module.networks.end(), network) != module.networks.end()) {
            return module.name;
        }
    }
    throw std::runtime_error("the network '" + description + "' belongs to no module");
}

std::string lora_of(const std::string& module) {
    return module + lora_suffix;
}

bool is_lora(const std::string& name) {
    return name.find(lora_suffix) != std::string::npos;
}

std::string module_of(const std::string& name) {
    return name.substr(0, name.rfind(lora_suffix));
}

}  // namespace sdcpp
