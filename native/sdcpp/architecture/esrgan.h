// ESRGAN, the network of residual dense blocks (RRDBNet) that makes pictures larger.
#pragma once

#include "model.h"
#include "tensor.hpp"

namespace sdcpp {

// The sizes of an ESRGAN, by reference to the runner's own.
struct EsrganSizes {
    int& folds;  // pixels of each direction that are taken as channels of one
    int& blocks;
    int& channels;  // taken: those of a pixel, once for each pixel that is folded into it
    int& width;
    int& growth;  // channels that each layer of a dense block adds
};

// Gives the tensors of an ESRGAN the names that BasicSR's RRDBNet has, where they have those of ESRGAN's first
// releases, "model.1.sub.0.RDB1.conv1.0.weight" or "RRDB_trunk.0.RDB1.conv1.weight". Throws std::runtime_error for a
// factor that the engine cannot do.
void architecture_esrgan_names(String2TensorStorage& file);
// Reads the sizes of an ESRGAN. Throws std::runtime_error for one that is not made for RGB.
void architecture_esrgan(const String2TensorStorage& file, EsrganSizes sizes);

// Returns a picture of shape (width, height, channels, 1) with each square of pixels as the channels of one, in the
// order of torch's pixel_unshuffle: the channel before the row before the column. The sides must be multiples of folds.
sd::Tensor<float> folded(const sd::Tensor<float>& image, int folds);

}  // namespace sdcpp
