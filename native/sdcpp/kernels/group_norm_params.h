// What a group norm does besides. Only our kernels for the CPU know it, and only graphs that they compute have it: a
// factor and a summand for each channel are its second and its third source.
#pragma once

namespace sdcpp {

// In the parameters of its node that ggml leaves free: 1 where SiLU follows.
constexpr int group_norm_silu = 2;

}  // namespace sdcpp
