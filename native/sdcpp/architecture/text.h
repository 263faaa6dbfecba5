// Text as a transformer takes it, whether or not the checkpoint holds the encoders.
#pragma once

#include <cstdint>
#include <string>

#include "model.h"

namespace sdcpp {

// The widths that a transformer takes of text, for the encoders that a checkpoint does not hold.
struct TextSizes {
    int64_t context = 4096;
    int64_t clip_l = 768;
    int64_t clip_g = 1280;
};

// Returns the widths of text that the checkpoint's SD 3 or Flux transformer takes.
TextSizes architecture_text(const String2TensorStorage& file);

}  // namespace sdcpp
