// The scales of LoRAs whose files keep them apart from their tensors: PEFT's adapter_config.json beside the file, and
// diffusers' "lora_adapter_metadata" in its header.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace sdcpp {

class PeftScales {
public:
    // Reads what belongs to a file; what is missing or makes no sense is left out.
    explicit PeftScales(const std::string& path);

    // Returns alpha / rank of a module, or alpha / sqrt(rank) where the file says so; 1 when it says nothing.
    float scale(const std::string& module, int64_t rank) const;

private:
    struct Config {
        std::string component;                // "transformer", "text_encoder", ...; "" for a file of one component
        float alpha = 0.0f;                   // 0: not given
        bool root = false;                    // rank-stabilised: divided by the rank's root
        std::map<std::string, float> alphas;  // by the end of a module's name
    };

    void add_config(const std::string& text);

    std::vector<Config> configs;
};

}  // namespace sdcpp
