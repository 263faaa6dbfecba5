#include "sdcpp/kernels/cuda/mma.h"
#include "sdcpp/kernels/cuda/nodes.h"

namespace sdcpp::cuda {

namespace {

// Attention in blocks of keys: Dao et al., FlashAttention-2, 2023, equations of algorithm 1.
constexpr int block_queries = 128;
constexpr int block_keys = 64;
constexpr int threads = 128;
constexpr int warp_rows = block_queries / (threads / 32);
constexpr int row_tiles = warp_rows / 16;

struct Heads {
    const char *q, *k, *v;
    float* result;
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

template <int depth>
__global__ void __launch_bounds__(threads, depth == 64 ? 3 : 2) attend(const Heads of) {
    extern __shared__ half tiles[];
    constexpr int chunks = depth / 8;
    constexpr int tile = block_keys * depth;
    half* const queries = tiles;
    half* const keys = queries + block_queries * depth;  // two tiles each
    half* const values = keys + 2 * tile;

    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int first_query = blockIdx.x * block_queries;
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
            const int at = stage + chunk_at<depth>(row, chunk);
            copy_16(keys + at, k + key * of.k_row + chunk * 16, there);
            copy_16(values + at, v + key * of.v_row + chunk * 16, there);
        }
        copies_commit();
    };
    fill(0);
    for (int i = threadIdx.x; i < block_queries * chunks; i += threads) {
        const int row = i / chunks;
        const int chunk = i % chunks;
        uint4 eight = make_uint4(0, 0, 0, 0);
        if (first_query + row < of.queries) {
            const auto* const from = reinterpret_cast<const float4*>(q + (first_query + row) * of.q_row) + chunk * 2;
            const float4 a = from[0];
            const float4 b = from[1];
            eight = make_uint4(pair_of(a.x, a.y), pair_of(a.z, a.w), pair_of(b.x, b.y), pair_of(b.z, b.w));
        }
        *reinterpret_cast<uint4*>(queries + chunk_at<depth>(row, chunk)) = eight;
    }

    float sums[row_tiles][depth / 8][4] = {};
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
        for (int step = 0; step < depth / 16; ++step) {
            uint32_t a[row_tiles][4];
#pragma unroll
            for (int i = 0; i < row_tiles; ++i) {
                load_matrices(a[i],
                              queries + chunk_at<depth>(warp * warp_rows + i * 16 + lane % 16, step * 2 + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < block_keys / 16; ++j) {
                uint32_t b[4];
                load_matrices(b,
                              key_tile + chunk_at<depth>(j * 16 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
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
                for (int j = 0; j < depth / 8; ++j) {
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
            for (int j = 0; j < depth / 16; ++j) {
                uint32_t b[4];
                load_matrices_turned(b, value_tile + chunk_at<depth>(step * 16 + lane % 16, j * 2 + lane / 16));
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
            float* const to = of.result +
                              ((static_cast<int64_t>(blockIdx.z) * of.queries + query) * of.heads + head) * depth +
                              lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < depth / 8; ++j) {
                *reinterpret_cast<float2*>(to + j * 8) =
                    make_float2(sums[i][j][side * 2] / all, sums[i][j][side * 2 + 1] / all);
            }
        }
    }
}

template <int depth>
constexpr size_t shared_bytes = (block_queries + 4 * block_keys) * depth * sizeof(half);

template <int depth>
void launch(const Heads& of, int64_t batch, cudaStream_t stream) {
    CUDA_CHECK(cudaFuncSetAttribute(attend<depth>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<depth>));
    const dim3 grid((of.queries + block_queries - 1) / block_queries, of.heads, static_cast<unsigned>(batch));
    attend<depth><<<grid, threads, shared_bytes<depth>, stream>>>(of);
    CUDA_CHECK(cudaGetLastError());
}

bool rows_aligned(const ggml_tensor& tensor, ggml_type type) {
    return tensor.type == type && tensor.nb[0] == ggml_type_size(type) && tensor.nb[1] % 16 == 0 &&
           tensor.nb[2] % 16 == 0 && tensor.nb[3] % 16 == 0 && reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
}

}  // namespace

int attention(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first) {
    const ggml_tensor& node = *graph->nodes[first];
    if (node.op != GGML_OP_FLASH_ATTN_EXT || node.src[3] != nullptr || node.src[4] != nullptr) {
        return 0;
    }
    const ggml_tensor& q = *node.src[0];
    const ggml_tensor& k = *node.src[1];
    const ggml_tensor& v = *node.src[2];
    const int64_t depth = q.ne[0];
    const auto& device = ggml_cuda_info().devices[context.device];
    const size_t shared = depth == 64 ? shared_bytes<64> : shared_bytes<128>;
    if ((depth != 64 && depth != 128) || v.ne[0] != depth || !rows_aligned(q, GGML_TYPE_F32) ||
        !rows_aligned(k, GGML_TYPE_F16) || !rows_aligned(v, GGML_TYPE_F16) || k.ne[3] != q.ne[3] ||
        v.ne[3] != q.ne[3] || v.ne[2] != k.ne[2] || q.ne[2] % k.ne[2] != 0 ||
        ggml_get_op_params_f32(&node, 1) != 0.0f || ggml_get_op_params_f32(&node, 2) != 0.0f || device.smpbo < shared ||
        q.ne[2] > 65535 || q.ne[3] > 65535) {
        return 0;
    }
    Heads of = {};
    of.q = static_cast<const char*>(q.data);
    of.k = static_cast<const char*>(k.data);
    of.v = static_cast<const char*>(v.data);
    of.result = static_cast<float*>(node.data);
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
    depth == 64 ? launch<64>(of, q.ne[3], context.stream()) : launch<128>(of, q.ne[3], context.stream());
    return 1;
}

}  // namespace sdcpp::cuda
