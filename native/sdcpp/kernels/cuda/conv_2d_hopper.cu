#include "sdcpp/kernels/cuda/conv_2d_hopper.h"
#include "sdcpp/kernels/cuda/mma.h"

namespace sdcpp::cuda {

namespace {

constexpr int depth = 64;  // of a tile: 128 bytes a row, as the tensor cores read them
constexpr int row_chunks = depth / 8;
constexpr int rows_at_once = product_threads / row_chunks;
constexpr size_t alignment = 1024;  // of a tile: eight rows

constexpr size_t shared_bytes(int filters) {
    return alignment + static_cast<size_t>(stages) * (block_pixels + filters) * depth * sizeof(half);
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Copies 16 bytes into shared memory, zeros where `there` is false, by way of the L1 cache: taps side by side read what
// lies side by side.
__device__ __forceinline__ void copy_16_again(void* to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

// Describes a tile of rows of 128 bytes, whose 16-byte parts lie as chunk_at<64> puts them: where it begins, how far
// eight rows are from the next eight, and that order. PTX ISA, "Matrix-descriptor format", in units of 16 bytes.
__device__ __forceinline__ uint64_t describe(const half* tile) {
    constexpr uint64_t eight_rows = 8 * 128 / 16;
    constexpr uint64_t swizzled_128 = 1;
    return (shared_address(tile) & 0x3FFFF) >> 4 | uint64_t{1} << 16 | eight_rows << 32 | swizzled_128 << 62;
}

// to += a b for a group of four warps: 64 pixels, 128 filters and 16 of the depth.
__device__ __forceinline__ void multiply_tiles(float (&to)[64], uint64_t a, uint64_t b) {
    asm volatile(
        "{.reg .pred add; setp.ne.b32 add, %66, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
        "%59, %60, %61, %62, %63}, "
        "%64, %65, add, 1, 1, 0, 0;}"
        : "+f"(to[0]), "+f"(to[1]), "+f"(to[2]), "+f"(to[3]), "+f"(to[4]), "+f"(to[5]), "+f"(to[6]),
          "+f"(to[7]), "+f"(to[8]), "+f"(to[9]), "+f"(to[10]), "+f"(to[11]), "+f"(to[12]), "+f"(to[13]),
          "+f"(to[14]), "+f"(to[15]), "+f"(to[16]), "+f"(to[17]), "+f"(to[18]), "+f"(to[19]), "+f"(to[20]),
          "+f"(to[21]), "+f"(to[22]), "+f"(to[23]), "+f"(to[24]), "+f"(to[25]), "+f"(to[26]), "+f"(to[27]),
          "+f"(to[28]), "+f"(to[29]), "+f"(to[30]), "+f"(to[31]), "+f"(to[32]), "+f"(to[33]), "+f"(to[34]),
          "+f"(to[35]), "+f"(to[36]), "+f"(to[37]), "+f"(to[38]), "+f"(to[39]), "+f"(to[40]), "+f"(to[41]),
          "+f"(to[42]), "+f"(to[43]), "+f"(to[44]), "+f"(to[45]), "+f"(to[46]), "+f"(to[47]), "+f"(to[48]),
          "+f"(to[49]), "+f"(to[50]), "+f"(to[51]), "+f"(to[52]), "+f"(to[53]), "+f"(to[54]), "+f"(to[55]),
          "+f"(to[56]), "+f"(to[57]), "+f"(to[58]), "+f"(to[59]), "+f"(to[60]), "+f"(to[61]), "+f"(to[62]),
          "+f"(to[63])
        : "l"(a), "l"(b), "r"(1));
}

// to += a b for a group of four warps: 64 pixels, 160 filters and 16 of the depth.
__device__ __forceinline__ void multiply_tiles(float (&to)[80], uint64_t a, uint64_t b) {
    asm volatile(
        "{.reg .pred add; setp.ne.b32 add, %82, 0; "
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
        "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "
        "%78, %79}, "
        "%80, %81, add, 1, 1, 0, 0;}"
        : "+f"(to[0]), "+f"(to[1]), "+f"(to[2]), "+f"(to[3]), "+f"(to[4]), "+f"(to[5]), "+f"(to[6]),
          "+f"(to[7]), "+f"(to[8]), "+f"(to[9]), "+f"(to[10]), "+f"(to[11]), "+f"(to[12]), "+f"(to[13]),
          "+f"(to[14]), "+f"(to[15]), "+f"(to[16]), "+f"(to[17]), "+f"(to[18]), "+f"(to[19]), "+f"(to[20]),
          "+f"(to[21]), "+f"(to[22]), "+f"(to[23]), "+f"(to[24]), "+f"(to[25]), "+f"(to[26]), "+f"(to[27]),
          "+f"(to[28]), "+f"(to[29]), "+f"(to[30]), "+f"(to[31]), "+f"(to[32]), "+f"(to[33]), "+f"(to[34]),
          "+f"(to[35]), "+f"(to[36]), "+f"(to[37]), "+f"(to[38]), "+f"(to[39]), "+f"(to[40]), "+f"(to[41]),
          "+f"(to[42]), "+f"(to[43]), "+f"(to[44]), "+f"(to[45]), "+f"(to[46]), "+f"(to[47]), "+f"(to[48]),
          "+f"(to[49]), "+f"(to[50]), "+f"(to[51]), "+f"(to[52]), "+f"(to[53]), "+f"(to[54]), "+f"(to[55]),
          "+f"(to[56]), "+f"(to[57]), "+f"(to[58]), "+f"(to[59]), "+f"(to[60]), "+f"(to[61]), "+f"(to[62]),
          "+f"(to[63]), "+f"(to[64]), "+f"(to[65]), "+f"(to[66]), "+f"(to[67]), "+f"(to[68]), "+f"(to[69]),
          "+f"(to[70]), "+f"(to[71]), "+f"(to[72]), "+f"(to[73]), "+f"(to[74]), "+f"(to[75]), "+f"(to[76]),
          "+f"(to[77]), "+f"(to[78]), "+f"(to[79])
        : "l"(a), "l"(b), "r"(1));
}

#endif

// Computes a tile of the result as convolution_product does, with the taps of some channels one after the other.
template <int block_filters>
__global__ void __launch_bounds__(product_threads, 2)
    convolution_tiles(const half* filters, const half* picture, float* result, float* parts, Part part,
                      Epilogue epilogue) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static_assert(block_filters % rows_at_once == 0 && block_pixels % rows_at_once == 0, "rows that are copied");
    extern __shared__ char shared[];
    half* const tiles = reinterpret_cast<half*>(shared + (alignment - shared_address(shared) % alignment) % alignment);
    half* const window_tiles = tiles;
    half* const filter_tiles = tiles + stages * block_pixels * depth;

    const int thread = threadIdx.x;
    const int lane = thread % 32;
    const int warp = thread / 32;
    const int first_filter = blockIdx.x * block_filters;
    const int first_pixel = blockIdx.y * block_pixels;
    const int first_block = blockIdx.z * part.split_blocks;
    const int blocks = min(part.split_blocks, part.depth / depth - first_block);

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
    const int taps = part.depth / part.channels;
    int tap = first_block % taps;
    int channel = first_block / taps * depth + chunk * 8;
    int tap_x = tap % part.taps_x;
    int tap_y = tap / part.taps_x;
    const half* const filter_rows = filters + static_cast<int64_t>(first_filter + row) * part.depth;

    const auto fill = [&](int block) {
        const int stage = block % stages;
        half* const window_tile = window_tiles + stage * block_pixels * depth;
        half* const filter_tile = filter_tiles + stage * block_filters * depth;
#pragma unroll
        for (int i = 0; i < block_pixels / rows_at_once; ++i) {
            const int y = ys[i] + tap_y * part.dilation_y;
            const int x = xs[i] + tap_x * part.dilation_x;
            const bool there = static_cast<unsigned>(y) < static_cast<unsigned>(part.height << part.doublings) &&
                               static_cast<unsigned>(x) < static_cast<unsigned>(part.width << part.doublings);
            const int pixel = ((y >> part.doublings) - part.first_row) * part.width + (x >> part.doublings);
            const int64_t at = static_cast<int64_t>(pixel) * part.channels + channel;
            copy_16_again(window_tile + chunk_at<depth>(row + i * rows_at_once, chunk), there ? picture + at : picture,
                          there);
        }
#pragma unroll
        for (int i = 0; i < block_filters / rows_at_once; ++i) {
            const bool there = first_filter + row + i * rows_at_once < part.filters;
            const half* const from = filter_rows + static_cast<int64_t>(i) * rows_at_once * part.depth +
                                     tap * part.channels + channel;
            copy_16(filter_tile + chunk_at<depth>(row + i * rows_at_once, chunk), there ? from : filters, there);
        }
        ++tap;
        if (++tap_x == part.taps_x) {
            tap_x = 0;
            ++tap_y;
        }
        if (tap == taps) {
            tap = tap_x = tap_y = 0;
            channel += depth;
        }
    };

    float sums[block_filters / 2] = {};
    for (int block = 0; block < stages - 1; ++block) {
        if (block < blocks) {
            fill(block);
        }
        copies_commit();
    }
    const int group = warp / 4;
    for (int block = 0; block < blocks; ++block) {
        copies_wait<stages - 2>();
        // The tensor cores read what the threads have copied, each of them its own.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        const uint64_t windows =
            describe(window_tiles + (block % stages * block_pixels + group * (block_pixels / 2)) * depth);
        const uint64_t of_filters = describe(filter_tiles + block % stages * block_filters * depth);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int step = 0; step < depth / 16; ++step) {
            multiply_tiles(sums, windows + step * 2, of_filters + step * 2);
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        // Into the tiles that were read before the last barrier.
        if (block + stages - 1 < blocks) {
            fill(block + stages - 1);
        }
        copies_commit();
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }

    const int pixel_row = first_pixel + warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < block_filters / 2; ++i) {
        const int pixel = pixel_row + i / 2 % 2 * 8;
        const int filter = first_filter + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (pixel >= part.pixels || filter >= part.filters) {
            continue;
        }
        if (parts != nullptr) {
            parts[(static_cast<int64_t>(blockIdx.z) * part.filters + filter) * part.pixels + pixel] = sums[i];
        } else {
            const int64_t at = static_cast<int64_t>(filter) * part.plane + part.first_pixel + pixel;
            result[at] = epilogue(sums[i], filter, at);
        }
    }
#endif
}

template <int block_filters>
void launch(const dim3& grid, cudaStream_t stream, const half* filters, const half* picture, float* result, float* parts,
            const Part& part, const Epilogue& epilogue) {
    const auto kernel = convolution_tiles<block_filters>;
    constexpr auto bytes = static_cast<int>(shared_bytes(block_filters));
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<grid, product_threads, bytes, stream>>>(filters, picture, result, parts, part, epilogue);
}

}  // namespace

int hopper_filters(int device, const Part& part) {
#ifdef SDCPP_HOPPER
    constexpr int hopper = 900;
    if (ggml_cuda_info().devices[device].cc == hopper && part.channels % depth == 0 && part.filters > 64) {
        return part.filters % 160 == 0 ? 160 : 128;
    }
#endif
    return 0;
}

void hopper_product(int block_filters, const dim3& grid, cudaStream_t stream, const half* filters, const half* picture,
                    float* result, float* parts, const Part& part, const Epilogue& epilogue) {
    const auto product = block_filters == 160 ? launch<160> : launch<128>;
    product(grid, stream, filters, picture, result, parts, part, epilogue);
}

}  // namespace sdcpp::cuda
