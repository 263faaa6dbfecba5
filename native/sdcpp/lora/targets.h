// The modules of a loaded model under every name that LoRA files give them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>

#include "ggml.h"

namespace sdcpp {

// Which of a weight's output rows a module of a file stands for: the engine keeps some layers fused.
enum class Part { whole, query, key, value, qkv, mlp };

// How the engine fused a layer: not, from query, key and value, or from those and the MLP's first layer (Flux).
enum class Fused { none, qkv, qkv_mlp };

// Where a module's change goes.
struct Target {
    std::string weight;  // name of the tensor in the model
    std::string bias;    // likewise, or "" when it has none
    Part part = Part::whole;
    Fused fused = Fused::none;
    bool halves_swapped =
        false;               // if it gives two vectors: the file's has scale before shift, the engine's shift first
    bool on_output = false;  // its input is the layer's output: W becomes W + change * W
};

// Tells whether a tensor of the model is a text encoder's.
bool of_text_encoder(const std::string& tensor);

// Returns the first row of a part of a weight with these rows and columns, for a change with own_rows rows; nothing
// when it does not fit.
std::optional<int64_t> part_row(const Target& target, int64_t rows, int64_t columns, int64_t own_rows);

class Targets {
public:
    // Takes a model's tensors by name; high_noise: of the second diffusion model of a pair, not of the first.
    Targets(const std::map<std::string, ggml_tensor*>& tensors, bool high_noise);

    // Returns where a module of a file goes, NULL when this model has no such module.
    const Target* find(const std::string& module) const;

private:
    enum Component { diffusion, clip_l, clip_g, t5, llm, vae, components };

    struct Scope;
    static const Scope* scopes();

    std::unordered_map<std::string, Target> known[components];
};

}  // namespace sdcpp
