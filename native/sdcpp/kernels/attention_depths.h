// How deep the heads are that our attention for CUDA computes; others are padded to the next one.
#pragma once

namespace sdcpp {

constexpr int attention_depths[] = {40, 64, 80, 128, 160};

}  // namespace sdcpp
