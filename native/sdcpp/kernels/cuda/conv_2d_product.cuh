// The product of a convolution: filters times windows, in tiles of shared memory that are filled while others multiply.
#pragma once

#include "sdcpp/kernels/cuda/conv_2d_part.cuh"
#include "sdcpp/kernels/cuda/mma.h"

namespace sdcpp::cuda {

constexpr int product_warps = product_threads / 32;

// Computes a tile of the result. `depth`: channels of a tap that a tile holds; `warps_down`: how many of the warps lie
// below one another; `down`, `right`: tiles of 16 filters and of 8 pixels that a warp computes.
template <int depth, int warps_down, int down, int right>
__global__ void __launch_bounds__(product_threads, 2)
    convolution_product(const half* filters, const half* picture, float* result, float* parts, Part part,
                        Epilogue epilogue) {
    constexpr int block_depth = depth;
    constexpr int block_filters = warps_down * down * 16;
    constexpr int row_chunks = depth / 8;  // 16 bytes each
    constexpr int rows_at_once = product_threads / row_chunks;
    static_assert(product_warps / warps_down * right * 8 == block_pixels, "a block's pixels");
    static_assert(block_filters % rows_at_once == 0 || block_filters < rows_at_once, "a block's filters");
    extern __shared__ half tiles[];
    half* const filter_tiles = tiles;
    half* const window_tiles = tiles + stages * block_filters * block_depth;

    const int thread = threadIdx.x;
    const int lane = thread % 32;
    const int warp = thread / 32;
    const int first_filter = blockIdx.x * block_filters;
    const int first_pixel = blockIdx.y * block_pixels;
    const int all_blocks = part.depth / block_depth;
    const int first_block = blockIdx.z * part.split_blocks;
    const int blocks = min(part.split_blocks, all_blocks - first_block);

    // What this thread copies: one chunk of some rows.
    const int row = thread / row_chunks;
    const int chunk = thread % row_chunks;
    int xs[block_pixels / rows_at_once], ys[block_pixels / rows_at_once];
#pragma unroll
    for (int i = 0; i < block_pixels / rows_at_once; ++i) {
        const int pixel = first_pixel + row + i * rows_at_once;
        const uint2 at = fast_div_modulo(static_cast<uint32_t>(pixel + part.first_pixel), part.out_width);
        // What lies behind the last pixel reads above the picture: zeros.
        ys[i] = pixel < part.pixels ? static_cast<int>(at.x) * part.stride_y - part.pad_y : -(1 << 28);
        xs[i] = static_cast<int>(at.y) * part.stride_x - part.pad_x;
    }
    const int channel_blocks = part.channels / block_depth;
    int tap = first_block / channel_blocks;
    int channel_block = first_block % channel_blocks;
    int tap_x = tap % part.taps_x;
    int tap_y = tap / part.taps_x;
    const half* const filter_rows = filters + static_cast<int64_t>(first_filter + row) * part.depth + chunk * 8;

    const auto fill = [&](int block) {
        const int stage = block % stages;
        half* const filter_tile = filter_tiles + stage * block_filters * block_depth;
        half* const window_tile = window_tiles + stage * block_pixels * block_depth;
#pragma unroll
        for (int i = 0; i < (block_filters + rows_at_once - 1) / rows_at_once; ++i) {
            if (block_filters < rows_at_once && row >= block_filters) {
                break;
            }
            const bool there = first_filter + row + i * rows_at_once < part.filters;
            const half* const from =
                filter_rows + static_cast<int64_t>(i) * rows_at_once * part.depth + (first_block + block) * block_depth;
            copy_16(filter_tile + chunk_at<depth>(row + i * rows_at_once, chunk), there ? from : filters, there);
        }
        const int channel = channel_block * block_depth + chunk * 8;
#pragma unroll
        for (int i = 0; i < block_pixels / rows_at_once; ++i) {
            const int y = ys[i] + tap_y * part.dilation_y;
            const int x = xs[i] + tap_x * part.dilation_x;
            const bool there = static_cast<unsigned>(y) < static_cast<unsigned>(part.height << part.doublings) &&
                               static_cast<unsigned>(x) < static_cast<unsigned>(part.width << part.doublings);
            const int pixel = ((y >> part.doublings) - part.first_row) * part.width + (x >> part.doublings);
            const int64_t at = static_cast<int64_t>(pixel) * part.channels + channel;
            copy_16(window_tile + chunk_at<depth>(row + i * rows_at_once, chunk), there ? picture + at : picture,
                    there);
        }
        if (++channel_block == channel_blocks) {
            channel_block = 0;
            if (++tap_x == part.taps_x) {
                tap_x = 0;
                ++tap_y;
            }
        }
    };

    float sums[down][right][4] = {};
    for (int block = 0; block < stages - 1; ++block) {
        if (block < blocks) {
            fill(block);
        }
        copies_commit();
    }
    const int warp_filter = warp % warps_down * down * 16;
    const int warp_pixel = warp / warps_down * right * 8;
    for (int block = 0; block < blocks; ++block) {
        copies_wait<stages - 2>();
        __syncthreads();
        if (block + stages - 1 < blocks) {
            fill(block + stages - 1);
        }
        copies_commit();
        const half* const filter_tile = filter_tiles + block % stages * block_filters * block_depth;
        const half* const window_tile = window_tiles + block % stages * block_pixels * block_depth;
#pragma unroll
        for (int step = 0; step < block_depth / 16; ++step) {
            uint32_t a[down][4], b[right / 2][4];
#pragma unroll
            for (int i = 0; i < down; ++i) {
                load_matrices(a[i],
                              filter_tile + chunk_at<depth>(warp_filter + i * 16 + lane % 16, step * 2 + lane / 16));
            }
#pragma unroll
            for (int i = 0; i < right / 2; ++i) {
                const int at = warp_pixel + i * 16 + lane % 8 + lane / 16 * 8;
                load_matrices(b[i], window_tile + chunk_at<depth>(at, step * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < down; ++i) {
#pragma unroll
                for (int j = 0; j < right; ++j) {
                    multiply_add(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }

    const bool pairs = part.plane % 2 == 0 && part.first_pixel % 2 == 0 && part.pixels % 2 == 0;
#pragma unroll
    for (int i = 0; i < down; ++i) {
#pragma unroll
        for (int half_tile = 0; half_tile < 2; ++half_tile) {
            const int filter = first_filter + warp_filter + i * 16 + half_tile * 8 + lane / 4;
            if (filter >= part.filters) {
                continue;
            }
#pragma unroll
            for (int j = 0; j < right; ++j) {
                const int pixel = first_pixel + warp_pixel + j * 8 + lane % 4 * 2;
                float2 values = make_float2(sums[i][j][half_tile * 2], sums[i][j][half_tile * 2 + 1]);
                float* to;
                if (parts != nullptr) {
                    to = parts + (static_cast<int64_t>(blockIdx.z) * part.filters + filter) * part.pixels + pixel;
                } else {
                    const int64_t at = static_cast<int64_t>(filter) * part.plane + part.first_pixel + pixel;
                    to = result + at;
                    if (pixel < part.pixels) {
                        values.x = epilogue(values.x, filter, at);
                    }
                    if (pixel + 1 < part.pixels) {
                        values.y = epilogue(values.y, filter, at + 1);
                    }
                }
                if (pairs && pixel < part.pixels) {
                    *reinterpret_cast<float2*>(to) = values;
                } else {
                    if (pixel < part.pixels) {
                        to[0] = values.x;
                    }
                    if (pixel + 1 < part.pixels) {
                        to[1] = values.y;
                    }
                }
            }
        }
    }
}

// Sums up what the splits of the depth gave, in their order.
static __global__ void convolution_sum(const float* parts, int splits, float* result, Part part, uint3 pixels,
                                       Epilogue epilogue) {
    const int64_t count = static_cast<int64_t>(part.filters) * part.pixels;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) {
        return;
    }
    float sum = 0.0f;
    for (int split = 0; split < splits; ++split) {
        sum += parts[split * count + i];
    }
    const uint2 at = fast_div_modulo(static_cast<uint32_t>(i), pixels);
    const int64_t to = static_cast<int64_t>(at.x) * part.plane + part.first_pixel + at.y;
    result[to] = epilogue(sum, static_cast<int>(at.x), to);
}

}  // namespace sdcpp::cuda
