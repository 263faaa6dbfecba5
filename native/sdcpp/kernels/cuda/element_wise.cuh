// Runs of operations on single values as small programs, which a thread computes for four values at a time.
#pragma once

#include "sdcpp/kernels/cuda/nodes.h"
#include "unary.cuh"

namespace sdcpp::cuda {

// Nodes that one launch computes, each value in a step of its own, with the rounding that ggml's kernels have: what is
// computed is the same, bit by bit, but for the sums of a norm before them. Values of a step that only other steps read
// are never written.
constexpr int most_steps = 10;
constexpr int most_operands = 8;
constexpr int most_results = 4;
constexpr int early_operands = 4;
constexpr int threads = 256;
constexpr int held_values = 4;

enum class Op : uint8_t {
    load,
    norm,
    rms_norm,
    add,
    sub,
    mul,
    scale,
    silu,
    gelu,
    gelu_quick,
    gelu_erf,
    tanh,
    sigmoid,
    relu,
    swiglu,
    geglu
};

// Values in memory that a step reads, by the position in the step's own shape.
struct Operand {
    const char* data;
    ggml_type type;
    bool linear;    // lies as the result does
    bool in_fours;  // four values can be read at once
    uint3 ne0, ne1, ne2;
    int64_t stride[4];  // in values; 0: the same for all
};

// A source: the number of a step, or that of an operand with its bits turned round.
using Source = int8_t;
constexpr Source none = 127;

struct Step {
    Op op;
    int8_t kept;  // where its values are kept for other steps than the next one; -1: nowhere
    Source a, b;
    float p0, p1;
};

struct Result {
    void* data;
    ggml_type type;
    int step;
};

struct Program {
    int step_count, operand_count, result_count, kept_count;
    Step steps[most_steps];
    Operand operands[most_operands];
    Result results[most_results];
    int64_t count;  // of values
    int row;        // of a norm
    float eps;
};

static __device__ float read(const Operand& operand, int64_t at) {
    return operand.type == GGML_TYPE_F32   ? reinterpret_cast<const float*>(operand.data)[at]
           : operand.type == GGML_TYPE_F16 ? __half2float(reinterpret_cast<const half*>(operand.data)[at])
                                           : static_cast<float>(reinterpret_cast<const nv_bfloat16*>(operand.data)[at]);
}

// Returns where an operand's value at a position lies; `x`: its place in the row.
static __device__ int64_t place(const Operand& operand, uint32_t i, uint32_t& x) {
    const uint2 row = fast_div_modulo(i, operand.ne0);
    const uint2 plane = fast_div_modulo(row.x, operand.ne1);
    const uint2 volume = fast_div_modulo(plane.x, operand.ne2);
    x = row.y;
    return plane.y * operand.stride[1] + volume.y * operand.stride[2] + volume.x * operand.stride[3] +
           x * operand.stride[0];
}

template <int width>
struct alignas(width * sizeof(float)) Values {
    float at[width];
};

template <int width>
__device__ Values<width> load(const Operand& operand, int64_t i) {
    uint32_t x = 0;
    const int64_t at = operand.linear ? i : place(operand, static_cast<uint32_t>(i), x);
    Values<width> values;
    if constexpr (width == 4) {
        if (operand.in_fours && operand.type == GGML_TYPE_F16) {
            const uint2 four = *reinterpret_cast<const uint2*>(operand.data + at * sizeof(half));
            const float2 a = __half22float2(*reinterpret_cast<const half2*>(&four.x));
            const float2 b = __half22float2(*reinterpret_cast<const half2*>(&four.y));
            return {{a.x, a.y, b.x, b.y}};
        }
        if (operand.in_fours) {
            const float4 four = *reinterpret_cast<const float4*>(operand.data + at * sizeof(float));
            return {{four.x, four.y, four.z, four.w}};
        }
    }
    const int64_t step = operand.linear ? 1 : operand.stride[0];
    for (int k = 0; k < width; ++k) {
        values.at[k] = read(operand, at + k * step);
    }
    return values;
}

template <int width>
__device__ void store(const Result& result, int64_t i, const Values<width>& values) {
    if (result.type == GGML_TYPE_F32) {
        float* const to = static_cast<float*>(result.data) + i;
        if constexpr (width == 4) {
            *reinterpret_cast<float4*>(to) = make_float4(values.at[0], values.at[1], values.at[2], values.at[3]);
        } else {
            *to = values.at[0];
        }
        return;
    }
    const auto put = [&](auto* to) {
        using T = std::remove_pointer_t<decltype(to)>;
        alignas(8) T rounded[width];
        for (int k = 0; k < width; ++k) {
            rounded[k] = static_cast<T>(values.at[k]);
        }
        if constexpr (width == 4) {
            *reinterpret_cast<uint2*>(to + i) = *reinterpret_cast<const uint2*>(rounded);
        } else {
            to[i] = rounded[0];
        }
    };
    result.type == GGML_TYPE_F16 ? put(static_cast<half*>(result.data)) : put(static_cast<nv_bfloat16*>(result.data));
}

template <int width, typename F>
__device__ Values<width> each(const Values<width>& a, const Values<width>& b, F compute) {
    Values<width> values;
#pragma unroll
    for (int i = 0; i < width; ++i) {
        values.at[i] = compute(a.at[i], b.at[i]);
    }
    return values;
}

template <int width>
__device__ Values<width> apply(Op op, const Values<width>& a, const Values<width>& b, float p0, float p1) {
    switch (op) {
        case Op::load:
            return a;
        case Op::norm:
            return each(a, b, [&](float x, float) { return __fmul_rn(x - p0, p1); });
        case Op::rms_norm:
            return each(a, b, [&](float x, float) { return __fmul_rn(p1, x); });
        case Op::add:
            return each(a, b, [](float x, float y) { return __fadd_rn(x, y); });
        case Op::sub:
            return each(a, b, [](float x, float y) { return __fsub_rn(x, y); });
        case Op::mul:
            return each(a, b, [](float x, float y) { return __fmul_rn(x, y); });
        case Op::scale:
            return each(a, b, [&](float x, float) { return fmaf(p0, x, p1); });
        case Op::silu:
            return each(a, b, [](float x, float) { return ggml_cuda_op_silu_single(x); });
        case Op::gelu:
            return each(a, b, [](float x, float) { return ggml_cuda_op_gelu_single(x); });
        case Op::gelu_quick:
            return each(a, b, [](float x, float) { return x * (1.0f / (1.0f + expf(-1.702f * x))); });
        case Op::gelu_erf:
            return each(
                a, b, [](float x, float) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752440084436210484f)); });
        case Op::tanh:
            return each(a, b, [](float x, float) { return tanhf(x); });
        case Op::sigmoid:
            return each(a, b, [](float x, float) { return 1.0f / (1.0f + expf(-x)); });
        case Op::relu:
            return each(a, b, [](float x, float) { return fmaxf(x, 0); });
        case Op::swiglu:
            return each(a, b, [](float x, float y) { return __fmul_rn(ggml_cuda_op_silu_single(x), y); });
        case Op::geglu:
            return each(a, b, [](float x, float y) { return __fmul_rn(ggml_cuda_op_gelu_single(x), y); });
    }
    return a;
}

// Computes the steps for values that lie side by side. `mean`, `scale`: of a norm.
template <int width>
__device__ void compute_steps(const Program& program, int64_t i, Values<width>* kept, float mean, float scale) {
    // The first operands are on their way together, before the first step waits for one.
    Values<width> early[early_operands];
#pragma unroll
    for (int k = 0; k < early_operands; ++k) {
        if (k < program.operand_count) {
            early[k] = load<width>(program.operands[k], i);
        }
    }
    const auto operand = [&](int which) {
        if (which >= early_operands) {
            return load<width>(program.operands[which], i);
        }
        Values<width> values = early[0];
#pragma unroll
        for (int k = 1; k < early_operands; ++k) {
            if (k == which) {
                values = early[k];
            }
        }
        return values;
    };
    Values<width> last = {};
    for (int k = 0; k < program.step_count; ++k) {
        const Step& step = program.steps[k];
        const auto source = [&](Source from) {
            return from < 0 ? operand(~from) : from == k - 1 ? last : kept[program.steps[from].kept * blockDim.x];
        };
        const Values<width> a = source(step.a);
        const Values<width> b = step.b == none ? a : source(step.b);
        const bool norm = step.op == Op::norm || step.op == Op::rms_norm;
        last = apply(step.op, a, b, norm ? mean : step.p0, norm ? scale : step.p1);
        if (step.kept >= 0) {
            kept[step.kept * blockDim.x] = last;
        }
    }
    // Results may lie where operands do: by now this thread has read them.
    for (int r = 0; r < program.result_count; ++r) {
        const int k = program.results[r].step;
        store<width>(program.results[r], i,
                     k == program.step_count - 1 ? last : kept[program.steps[k].kept * blockDim.x]);
    }
}

template <int width>
__global__ void compute_values(const __grid_constant__ Program program) {
    extern __shared__ float4 shared_values[];
    const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * width;
    if (i < program.count) {
        compute_steps<width>(program, i, reinterpret_cast<Values<width>*>(shared_values) + threadIdx.x, 0.0f, 0.0f);
    }
}

// Computes a row that is normed first.
template <int width, bool rms>
__global__ void compute_rows(const __grid_constant__ Program program) {
    extern __shared__ float4 shared_values[];
    __shared__ float sums[32];
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * program.row;
    // The first values of each thread are read once.
    Values<width> held[held_values];
#pragma unroll
    for (int j = 0; j < held_values; ++j) {
        const int i = (threadIdx.x + j * blockDim.x) * width;
        if (i < program.row) {
            held[j] = load<width>(program.operands[0], begin + i);
        }
    }
    // Sums up a function of the row's values.
    const auto sum_of = [&](auto of) {
        float sum = 0.0f;
        const auto add = [&](const Values<width>& values) {
#pragma unroll
            for (int k = 0; k < width; ++k) {
                sum += of(values.at[k]);
            }
        };
#pragma unroll
        for (int j = 0; j < held_values; ++j) {
            if ((threadIdx.x + j * blockDim.x) * width < program.row) {
                add(held[j]);
            }
        }
        for (int i = (threadIdx.x + held_values * blockDim.x) * width; i < program.row; i += blockDim.x * width) {
            add(load<width>(program.operands[0], begin + i));
        }
        return block_reduce<block_reduce_method::SUM>(sum, sums);
    };
    float mean = 0.0f;
    if constexpr (!rms) {
        mean = sum_of([](float value) { return value; }) / program.row;
    }
    const float squares = sum_of([&](float value) { return (value - mean) * (value - mean); });
    const float scale = rsqrtf(squares / program.row + program.eps);
    auto* const kept = reinterpret_cast<Values<width>*>(shared_values) + threadIdx.x;
    for (int i = threadIdx.x * width; i < program.row; i += blockDim.x * width) {
        compute_steps<width>(program, begin + i, kept, mean, scale);
    }
}

}  // namespace sdcpp::cuda
