#include <algorithm>
#include <iterator>
#include <utility>

#include "sdcpp/kernels/attention_depths.h"
#include "sdcpp/kernels/cuda/mma.h"
#include "sdcpp/kernels/cuda/nodes.h"

namespace sdcpp::cuda {

namespace {

// Attention in blocks of keys: Dao et al., FlashAttention-2, 2023, equations of algorithm 1.
constexpr int block_keys = 64;
constexpr int threads = 128;

// As much as there are registers for.
__host__ __device__ constexpr int block_queries(int depth) {
    return depth <= 128 ? 128 : 64;
}

// Rows of a tile are as long as lets eight of them lie in different banks.
__host__ __device__ constexpr int tile_depth(int depth) {
    return (depth + 63) / 64 * 64;
}

constexpr size_t shared_bytes(int depth) {
    return static_cast<size_t>(block_queries(depth) + 4 * block_keys) * tile_depth(depth) * sizeof(half);
}

struct Heads {
    const char *q, *k, *v;
    void* result;
    ggml_type type;  // of the result
    int queries, keys, heads, group;  // group: heads of queries for each one of keys
    int64_t q_row, q_head, q_batch;   // bytes from one to the next
    int64_t k_row, k_head, k_batch;
    int64_t v_row, v_head, v_batch;
    float scale;  // times log2(e): powers are of two
};

__device__ __forceinline__ uint32_t pair_of(float a, float b) {
    const half2 pair = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

// Stores two values that lie side by side.
__device__ __forceinline__ void store_pair(const Heads& of, int64_t at, float a, float b) {
    if (of.type == GGML_TYPE_F32) {
        *reinterpret_cast<float2*>(static_cast<float*>(of.result) + at) = make_float2(a, b);
    } else if (of.type == GGML_TYPE_F16) {
        *reinterpret_cast<half2*>(static_cast<half*>(of.result) + at) = __floats2half2_rn(a, b);
    } else {
        *reinterpret_cast<nv_bfloat162*>(static_cast<nv_bfloat16*>(of.result) + at) = __floats2bfloat162_rn(a, b);
    }
}

template <int depth>
__global__ void __launch_bounds__(threads, depth <= 64 ? 3 : depth <= 128 ? 2 : 1) attend(const Heads of) {
    extern __shared__ half tiles[];
    constexpr int chunks = depth / 8;
    constexpr int steps = (depth + 15) / 16;  // of products, 16 values each
    constexpr int wide = tile_depth(depth);
    constexpr int tile = block_keys * wide;
    constexpr int rows = block_queries(depth);
    constexpr int warp_rows = rows / (threads / 32);
    constexpr int row_tiles = warp_rows / 16;
    half* const queries = tiles;
    half* const keys = queries + rows * wide;  // two tiles each
    half* const values = keys + 2 * tile;

    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int first_query = blockIdx.x * rows;
    const int head = blockIdx.y;
    const char* const q = of.q + head * of.q_head + blockIdx.z * of.q_batch;
    const char* const k = of.k + head / of.group * of.k_head + blockIdx.z * of.k_batch;
    const char* const v = of.v + head / of.group * of.v_head + blockIdx.z * of.v_batch;

    const auto fill = [&](int first_key) {
        const int stage = first_key / block_keys % 2 * tile;
#pragma unroll
        for (int i = threadIdx.x; i < block_keys * chunks; i += threads) {
            const int row = i / chunks;
            const int chunk = i % chunks;
            const bool there = first_key + row < of.keys;
            const int64_t key = there ? first_key + row : 0;
            const int at = stage + chunk_at<wide>(row, chunk);
            copy_16(keys + at, k + key * of.k_row + chunk * 16, there);
            copy_16(values + at, v + key * of.v_row + chunk * 16, there);
        }
        copies_commit();
    };
    fill(0);
    if constexpr (depth % 16 != 0) {
        // The last step has zeros besides.
        for (int row = threadIdx.x; row < rows + 4 * block_keys; row += threads) {
            *reinterpret_cast<uint4*>(tiles + chunk_at<wide>(row, chunks)) = make_uint4(0, 0, 0, 0);
        }
    }
    for (int i = threadIdx.x; i < rows * chunks; i += threads) {
        const int row = i / chunks;
        const int chunk = i % chunks;
        uint4 eight = make_uint4(0, 0, 0, 0);
        if (first_query + row < of.queries) {
            const auto* const from = reinterpret_cast<const float4*>(q + (first_query + row) * of.q_row) + chunk * 2;
            const float4 a = from[0];
            const float4 b = from[1];
            eight = make_uint4(pair_of(a.x, a.y), pair_of(a.z, a.w), pair_of(b.x, b.y), pair_of(b.z, b.w));
        }
        *reinterpret_cast<uint4*>(queries + chunk_at<wide>(row, chunk)) = eight;
    }

    float sums[row_tiles][steps * 2][4] = {};
    float most[row_tiles][2], total[row_tiles][2];
    for (int i = 0; i < row_tiles; ++i) {
        for (int side = 0; side < 2; ++side) {
            most[i][side] = -INFINITY;
            total[i][side] = 0.0f;
        }
    }
    for (int first_key = 0; first_key < of.keys; first_key += block_keys) {
        copies_wait<0>();
        __syncthreads();
        if (first_key + block_keys < of.keys) {
            fill(first_key + block_keys);
        }
        const half* const key_tile = keys + first_key / block_keys % 2 * tile;
        const half* const value_tile = values + first_key / block_keys % 2 * tile;

        float scores[row_tiles][block_keys / 8][4] = {};
#pragma unroll
        for (int step = 0; step < steps; ++step) {
            uint32_t a[row_tiles][4];
#pragma unroll
            for (int i = 0; i < row_tiles; ++i) {
                load_matrices(a[i],
                              queries + chunk_at<wide>(warp * warp_rows + i * 16 + lane % 16, step * 2 + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < block_keys / 16; ++j) {
                uint32_t b[4];
                load_matrices(b,
                              key_tile + chunk_at<wide>(j * 16 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
#pragma unroll
                for (int i = 0; i < row_tiles; ++i) {
                    multiply_add(scores[i][j * 2], a[i], b[0], b[1]);
                    multiply_add(scores[i][j * 2 + 1], a[i], b[2], b[3]);
                }
            }
        }
        if (first_key + block_keys > of.keys) {
#pragma unroll
            for (int j = 0; j < block_keys / 8; ++j) {
#pragma unroll
                for (int part = 0; part < 4; ++part) {
                    if (first_key + j * 8 + lane % 4 * 2 + part % 2 >= of.keys) {
                        for (int i = 0; i < row_tiles; ++i) {
                            scores[i][j][part] = -INFINITY;
                        }
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                float highest = most[i][side];
#pragma unroll
                for (int j = 0; j < block_keys / 8; ++j) {
                    highest = fmaxf(highest, fmaxf(scores[i][j][side * 2], scores[i][j][side * 2 + 1]));
                }
                highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
                const float shrink = exp2f((most[i][side] - highest) * of.scale);
                most[i][side] = highest;
                total[i][side] *= shrink;
#pragma unroll
                for (int j = 0; j < block_keys / 8; ++j) {
#pragma unroll
                    for (int part = side * 2; part < side * 2 + 2; ++part) {
                        scores[i][j][part] = exp2f((scores[i][j][part] - highest) * of.scale);
                        total[i][side] += scores[i][j][part];
                    }
                }
#pragma unroll
                for (int j = 0; j < chunks; ++j) {
                    sums[i][j][side * 2] *= shrink;
                    sums[i][j][side * 2 + 1] *= shrink;
                }
            }
        }
#pragma unroll
        for (int step = 0; step < block_keys / 16; ++step) {
            uint32_t a[row_tiles][4];
#pragma unroll
            for (int i = 0; i < row_tiles; ++i) {
                const auto& left = scores[i][step * 2];
                const auto& right = scores[i][step * 2 + 1];
                a[i][0] = pair_of(left[0], left[1]);
                a[i][1] = pair_of(left[2], left[3]);
                a[i][2] = pair_of(right[0], right[1]);
                a[i][3] = pair_of(right[2], right[3]);
            }
#pragma unroll
            for (int j = 0; j < steps; ++j) {
                uint32_t b[4];
                load_matrices_turned(b, value_tile + chunk_at<wide>(step * 16 + lane % 16, j * 2 + lane / 16));
#pragma unroll
                for (int i = 0; i < row_tiles; ++i) {
                    multiply_add(sums[i][j * 2], a[i], b[0], b[1]);
                    multiply_add(sums[i][j * 2 + 1], a[i], b[2], b[3]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            float all = total[i][side];
            all += __shfl_xor_sync(~0u, all, 1);
            all += __shfl_xor_sync(~0u, all, 2);
            const int query = first_query + warp * warp_rows + i * 16 + side * 8 + lane / 4;
            if (query >= of.queries) {
                continue;
            }
            const int64_t to = ((static_cast<int64_t>(blockIdx.z) * of.queries + query) * of.heads + head) * depth +
                               lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < chunks; ++j) {
                store_pair(of, to + j * 8, sums[i][j][side * 2] / all, sums[i][j][side * 2 + 1] / all);
            }
        }
    }
}

template <int depth>
void launch(const Heads& of, int64_t batch, cudaStream_t stream) {
    constexpr size_t shared = shared_bytes(depth);
    CUDA_CHECK(cudaFuncSetAttribute(attend<depth>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    const dim3 grid((of.queries + block_queries(depth) - 1) / block_queries(depth), of.heads, static_cast<unsigned>(batch));
    attend<depth><<<grid, threads, shared, stream>>>(of);
    CUDA_CHECK(cudaGetLastError());
}

template <size_t... which>
void launch(int64_t depth, const Heads& of, int64_t batch, cudaStream_t stream, std::index_sequence<which...>) {
    ((depth == attention_depths[which] ? launch<attention_depths[which]>(of, batch, stream) : void()), ...);
}

bool rows_aligned(const ggml_tensor& tensor, ggml_type type) {
    return tensor.type == type && tensor.nb[0] == ggml_type_size(type) && tensor.nb[1] % 16 == 0 &&
           tensor.nb[2] % 16 == 0 && tensor.nb[3] % 16 == 0 && reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
}

}  // namespace

bool computes_attention(int device, const ggml_tensor& node) {
    if (node.op != GGML_OP_FLASH_ATTN_EXT || node.src[3] != nullptr || node.src[4] != nullptr) {
        return false;
    }
    const ggml_tensor& q = *node.src[0];
    const ggml_tensor& k = *node.src[1];
    const ggml_tensor& v = *node.src[2];
    const auto depth = static_cast<int>(q.ne[0]);
    const auto* const end = std::end(attention_depths);
    return sdcpp_kernels_fast() && std::find(std::begin(attention_depths), end, depth) != end && v.ne[0] == depth &&
           rows_aligned(q, GGML_TYPE_F32) && rows_aligned(k, GGML_TYPE_F16) && rows_aligned(v, GGML_TYPE_F16) &&
           k.ne[3] == q.ne[3] && v.ne[3] == q.ne[3] && v.ne[2] == k.ne[2] && q.ne[2] % k.ne[2] == 0 &&
           ggml_get_op_params_f32(&node, 1) == 0.0f && ggml_get_op_params_f32(&node, 2) == 0.0f &&
           ggml_cuda_info().devices[device].smpbo >= shared_bytes(depth) && q.ne[2] <= 65535 && q.ne[3] <= 65535;
}

int attention(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first) {
    const ggml_tensor& node = *graph->nodes[first];
    if (!computes_attention(context.device, node)) {
        return 0;
    }
    const ggml_tensor& q = *node.src[0];
    const ggml_tensor& k = *node.src[1];
    const ggml_tensor& v = *node.src[2];
    Heads of = {};
    of.q = static_cast<const char*>(q.data);
    of.k = static_cast<const char*>(k.data);
    of.v = static_cast<const char*>(v.data);
    of.result = node.data;
    of.type = node.type;
    of.queries = static_cast<int>(q.ne[1]);
    of.keys = static_cast<int>(k.ne[1]);
    of.heads = static_cast<int>(q.ne[2]);
    of.group = static_cast<int>(q.ne[2] / k.ne[2]);
    const auto strides = [](const ggml_tensor& tensor, int64_t& row, int64_t& head, int64_t& batch) {
        row = static_cast<int64_t>(tensor.nb[1]);
        head = static_cast<int64_t>(tensor.nb[2]);
        batch = static_cast<int64_t>(tensor.nb[3]);
    };
    strides(q, of.q_row, of.q_head, of.q_batch);
    strides(k, of.k_row, of.k_head, of.k_batch);
    strides(v, of.v_row, of.v_head, of.v_batch);
    of.scale = ggml_get_op_params_f32(&node, 0) * 1.44269504088896341f;
    // A product that alone reads the values has them in the type of its weights.
    const Run run(graph, first);
    const ggml_tensor* const next = run.passes_on() ? run.next() : nullptr;
    if (next != nullptr && next->src[1] != nullptr && unshaped(next->src[1]) == &node) {
        const ggml_type type = product_type(context, *next);
        if (type != GGML_TYPE_COUNT) {
            of.type = type;
            of.result = kept_of(context).make(context, &node, type, run.end());
        }
    }
    constexpr std::make_index_sequence<std::size(attention_depths)> depths;
    launch(q.ne[0], of, q.ne[3], context.stream(), depths);
    return 1;
}

}  // namespace sdcpp::cuda
