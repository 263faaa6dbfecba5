// The LoRAs of a context: what is asked for, how it is applied, and what came of it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "stable-diffusion.h"

struct WeightAdapter;

namespace sdcpp {

// What became of one LoRA in the last run.
struct LoraReport {
    std::string path;
    float strength = 0.0f;
    float te_strength = 0.0f;
    bool merged = false;        // into the weights; else its layers' outputs are changed at run time
    uint64_t tensors = 0;       // in the file
    uint64_t applied = 0;       // of them, those that changed the model
    std::string skipped_names;  // the first of the others, with the reason, separated by "; "
};

// What the engine gives for applying them.
struct LoraModelParts {
    const std::map<std::string, ggml_tensor*>& tensors;
    ggml_backend_t backend;  // the engine's default one
    int n_threads;
    std::string photo_maker;  // a file whose LoRA belongs to the model, "" when there is none
};

class Loras {
public:
    Loras();
    ~Loras();
    Loras(const Loras&) = delete;
    Loras& operator=(const Loras&) = delete;

    // Makes these LoRAs the ones that are applied, and no others; what is applied already stays as it is. merge:
    // changes the weights instead of the layers' outputs. Throws std::runtime_error, with no LoRA applied, when a file
    // cannot be read or nothing of it fits the model.
    void apply(const sd_lora_t* loras, uint32_t count, bool merge, const LoraModelParts& parts);

    // Merging gives way to applying at run time where host memory has no room for the weights' own bytes.
    bool automatic = false;

    // Returns what changes the outputs of a module's layers: "te", "diffusion" or "vae"; NULL when nothing does.
    std::shared_ptr<WeightAdapter> adapter(const std::string& module) const;

    const std::vector<LoraReport>& reports() const { return made; }

private:
    struct State;

    std::unique_ptr<State> state;
    std::vector<LoraReport> made;
};

// Returns the LoRAs of a context.
const Loras& loras_of(const sd_ctx_t* ctx);

}  // namespace sdcpp
