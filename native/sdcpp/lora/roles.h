// What a tensor of a LoRA's file is: the module it changes and its role in the change, told from its name alone.
#pragma once

#include <optional>
#include <string>

namespace sdcpp {

enum class Role {
    down,       // lora_down, lora_A: [rank, inputs...]
    up,         // lora_up, lora_B: [outputs, rank]
    mid,        // lora_mid: the core of a Tucker decomposition, [rank, rank, kernel...]
    up_bias,    // the bias of lora_B, which changes the module's bias
    alpha,      // the change is scaled by alpha / rank
    scale,      // the change is scaled by it, instead
    dora,       // dora_scale: the norm of each output or input of the changed weight
    magnitude,  // lora_magnitude_vector: the norm of each output
    diff,       // what is added to the weight
    diff_bias,  // what is added to the bias
    hada_1a,    // LoHa: (1a x 1b) * (2a x 2b), each with its own Tucker core t
    hada_1b,
    hada_1t,
    hada_2a,
    hada_2b,
    hada_2t,
    kron_1,  // LoKr: the Kronecker product of 1 and 2, each whole or a x b, and 2 with a Tucker core
    kron_1a,
    kron_1b,
    kron_2,
    kron_2a,
    kron_2b,
    kron_2t,
};

struct Named {
    std::string module;  // as the file writes it, with its prefix
    Role role;
};

// Returns what a tensor's name says; nothing when it is no part of a change that we know.
std::optional<Named> role_of(const std::string& tensor);

}  // namespace sdcpp
