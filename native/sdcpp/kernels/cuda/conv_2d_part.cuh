// What the products of a convolution are given: a part of it, and what follows it.
#pragma once

#include "sdcpp/kernels/cuda/nodes.h"

namespace sdcpp::cuda {

constexpr int block_pixels = 128;
constexpr int product_threads = 256;
constexpr int stages = 3;

// What follows a convolution, in the order of the graph.
struct Epilogue {
    enum class Kind { scale, channel, pixel };
    struct Step {
        Kind kind;
        const float* data;      // of the channels or of the pixels
        int64_t picture;        // from one picture's data to the next one's
        float factor, summand;  // of a scale
    };
    static constexpr int most = 4;

    int count = 0;
    Step steps[most];

    void next_picture() {
        for (int i = 0; i < count; ++i) {
            steps[i].data += steps[i].picture;
        }
    }

    __device__ float operator()(float value, int channel, int64_t at) const {
        for (int i = 0; i < count; ++i) {
            const Step& step = steps[i];
            value = step.kind == Kind::scale     ? fmaf(step.factor, value, step.summand)
                    : step.kind == Kind::channel ? value + step.data[channel]
                                                 : value + step.data[at];
        }
        return value;
    }
};

// A part of a convolution: some rows of the result of one picture.
struct Part {
    int filters, depth;           // depth: of a filter, taps times padded channels
    int pixels, first_pixel;      // of the result
    int plane;                    // pixels of a channel of the whole result
    uint3 out_width;              // to divide by
    int width, height, channels;  // of the picture; channels are padded
    int first_row;                // of the picture's rows, the one that the staged ones begin with
    int doublings;                // of width and height, each value four times, before the windows are taken
    int taps_x;
    int stride_x, stride_y, pad_x, pad_y, dilation_x, dilation_y;
    int split_blocks;  // blocks of the depth that one of the splits sums up
};

}  // namespace sdcpp::cuda
