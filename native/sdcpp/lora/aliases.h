// The names that other programs give the engine's modules.
#pragma once

#include <functional>
#include <string>

#include "sdcpp/lora/targets.h"

namespace sdcpp {

// What a name stands for, besides the module itself.
struct Alias {
    Part part = Part::whole;
    Fused fused = Fused::none;
    bool halves_swapped = false;
    bool on_output = false;
};

using Emit = std::function<void(const std::string& name, const Alias& alias)>;

// Returns the number that a text begins with, up to a dot or its end; -1 for none, and for more digits than any layer's
// number has: names come from files.
int layer_number(const std::string& text);

// Each calls emit for every further name of a module, which it gets without its component's prefix.
void unet_aliases(const std::string& module, const Emit& emit);         // diffusers' names of an LDM UNet
void transformer_aliases(const std::string& module, const Emit& emit);  // SD 3, Flux, Flux.2, Z-Image, Wan, Anima
void text_aliases(const std::string& module, const Emit& emit);         // text encoders
void vae_aliases(const std::string& module, int levels, const Emit& emit);

}  // namespace sdcpp
