// What a convolution does besides, in the parameters of its node that ggml leaves free. Only our kernels know them, and
// only graphs that they compute have them.
#pragma once

#include <cstdint>

namespace sdcpp {

// Groups of the norm before it, which SiLU follows, with a factor and a summand for each channel as the third and the
// fourth source; 0: there is none. The norm's epsilon, as a float. How often width and height are doubled before, by
// repeating.
constexpr int conv_2d_groups = 8;
constexpr int conv_2d_eps = 9;
constexpr int conv_2d_doublings = 10;
// The source that is added to the result, which lies where that does.
constexpr int conv_2d_summand = 4;

constexpr int conv_2d_taps = 64;  // that filters may have

// What they take of a device's pool: the channels of a picture side by side are a multiple of these; bytes of them that
// are staged at once, enough for all multiprocessors, and few enough for the cache of large devices; and bytes of sums
// in parts, of which there are at most two tiles for each multiprocessor.
constexpr int conv_2d_channels = 32;
constexpr uint64_t conv_2d_staged_bytes = 64 << 20;
constexpr uint64_t conv_2d_sum_bytes = 32 << 20;

}  // namespace sdcpp
