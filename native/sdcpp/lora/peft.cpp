#include "sdcpp/lora/peft.h"

#include <cmath>
#include <fstream>
#include <iterator>
#include <utility>

#include "json.hpp"
#include "util.h"

namespace {

using nlohmann::json;

constexpr uint64_t header_limit = 100u << 20;  // of the safetensors format

std::string read_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return file ? std::string(std::istreambuf_iterator<char>(file), {}) : std::string();
}

// Returns a safetensors file's metadata, null when it has none or is none.
json read_metadata(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const auto size = static_cast<uint64_t>(file ? static_cast<int64_t>(file.tellg()) : 0);
    unsigned char length_bytes[8];
    if (size <= sizeof(length_bytes) || !file.seekg(0).read(reinterpret_cast<char*>(length_bytes), 8)) {
        return {};
    }
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) {
        length = length << 8 | length_bytes[i];
    }
    if (length > header_limit || length > size - sizeof(length_bytes)) {
        return {};
    }
    std::string text(length, '\0');
    if (!file.read(text.data(), static_cast<std::streamsize>(length))) {
        return {};
    }
    const json header = json::parse(text, nullptr, false);
    return header.is_object() && header.contains("__metadata__") ? header["__metadata__"] : json();
}

float number(const json& object, const char* key) {
    return object.contains(key) && object[key].is_number() ? object[key].get<float>() : 0.0f;
}

bool is_end_of(const std::string& name, const std::string& end) {
    return name == end || (name.size() > end.size() && ends_with(name, "." + end));
}

}  // namespace

namespace sdcpp {

PeftScales::PeftScales(const std::string& path) {
    const json metadata = read_metadata(path);
    if (metadata.is_object() && metadata.contains("lora_adapter_metadata") &&
        metadata["lora_adapter_metadata"].is_string()) {
        add_config(metadata["lora_adapter_metadata"].get<std::string>());
    }
    const size_t slash = path.find_last_of("/\\");
    const size_t name = slash == std::string::npos ? 0 : slash + 1;
    if (starts_with(path.substr(name), "adapter_model.")) {
        add_config(read_text(path.substr(0, name) + "adapter_config.json"));
    }
}

void PeftScales::add_config(const std::string& text) {
    const json given = json::parse(text, nullptr, false);
    if (!given.is_object()) {
        return;
    }
    // diffusers writes "transformer.lora_alpha" and so on, PEFT "lora_alpha".
    std::map<std::string, json> components;
    for (const auto& [key, entry] : given.items()) {
        const size_t dot = key.find('.');
        if (dot == std::string::npos) {
            components[""][key] = entry;
        } else {
            components[key.substr(0, dot)][key.substr(dot + 1)] = entry;
        }
    }
    for (const auto& [component, options] : components) {
        Config config;
        config.component = component;
        config.alpha = number(options, "lora_alpha");
        config.root = options.contains("use_rslora") && options["use_rslora"] == true;
        if (options.contains("alpha_pattern") && options["alpha_pattern"].is_object()) {
            for (const auto& [name, alpha] : options["alpha_pattern"].items()) {
                if (alpha.is_number()) {
                    config.alphas[name] = alpha.get<float>();
                }
            }
        }
        if (config.alpha != 0.0f || !config.alphas.empty()) {
            configs.push_back(std::move(config));
        }
    }
}

float PeftScales::scale(const std::string& module, int64_t rank) const {
    for (const Config& config : configs) {
        if (!config.component.empty() && !starts_with(module, config.component + ".")) {
            continue;
        }
        float alpha = config.alpha;
        for (const auto& [name, own] : config.alphas) {
            if (is_end_of(module, name)) {
                alpha = own;
            }
        }
        if (alpha != 0.0f && rank > 0) {
            const auto width = static_cast<float>(rank);
            return alpha / (config.root ? std::sqrt(width) : width);
        }
    }
    return 1.0f;
}

}  // namespace sdcpp
