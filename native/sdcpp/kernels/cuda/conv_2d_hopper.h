// The product of a convolution on Hopper, whose tensor cores read both tiles from shared memory.
#pragma once

#include "sdcpp/kernels/cuda/conv_2d_part.cuh"

namespace sdcpp::cuda {

// Returns how many filters a block of hopper_product computes; 0: the device, or this build, does not have it.
int hopper_filters(int device, const Part& part);

// What convolution_product computes, in tiles of so many filters and block_pixels.
void hopper_product(int block_filters, const dim3& grid, cudaStream_t stream, const half* filters, const half* picture,
                    float* result, float* parts, const Part& part, const Epilogue& epilogue);

}  // namespace sdcpp::cuda
