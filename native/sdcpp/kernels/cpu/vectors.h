// The vectors of a CPU variant, as wide as its registers, and the block of results that fills them. Compilers make each
// variant's own instructions of them, multiply-adds included where it has them.
#pragma once

#include <cstdint>

#ifdef __AVX512F__
#include <immintrin.h>
#ifdef __AVX512BF16__
#define SDCPP_KERNELS_BF16
#endif
#endif

namespace sdcpp::cpu {

#if defined(__AVX512F__)
constexpr int lanes = 16;
constexpr int block_vectors = 2;   // of a column of a block
constexpr int block_columns = 12;  // 24 sums, 2 operands; the other operand is broadcast from memory
#elif defined(__AVX__)
constexpr int lanes = 8;
constexpr int block_vectors = 2;
constexpr int block_columns = 6;
#elif defined(__aarch64__)
constexpr int lanes = 4;
constexpr int block_vectors = 4;
constexpr int block_columns = 6;
#else
constexpr int lanes = 4;
constexpr int block_vectors = 2;
constexpr int block_columns = 6;
#endif
constexpr int block_rows = block_vectors * lanes;

typedef float Vector __attribute__((vector_size(lanes * sizeof(float))));
typedef Vector UnalignedVector __attribute__((aligned(sizeof(float)), may_alias));

inline Vector load(const float* from) {
    return *reinterpret_cast<const UnalignedVector*>(from);
}

inline void store(float* to, Vector vector) {
    *reinterpret_cast<UnalignedVector*>(to) = vector;
}

// Interleaves the lower or the upper halves of two vectors.
template <bool upper>
inline Vector interleave(Vector a, Vector b) {
    constexpr int o = upper ? lanes / 2 : 0;
#if defined(__AVX512F__)
    return __builtin_shufflevector(a, b, o, o + 16, o + 1, o + 17, o + 2, o + 18, o + 3, o + 19, o + 4, o + 20, o + 5,
                                   o + 21, o + 6, o + 22, o + 7, o + 23);
#elif defined(__AVX__)
    return __builtin_shufflevector(a, b, o, o + 8, o + 1, o + 9, o + 2, o + 10, o + 3, o + 11);
#else
    return __builtin_shufflevector(a, b, o, o + 4, o + 1, o + 5);
#endif
}

// Returns every other lane of two vectors in a row, from the first or from the second on.
template <bool second>
inline Vector every_other(Vector a, Vector b) {
    constexpr int o = second ? 1 : 0;
#if defined(__AVX512F__)
    return __builtin_shufflevector(a, b, o, o + 2, o + 4, o + 6, o + 8, o + 10, o + 12, o + 14, o + 16, o + 18, o + 20,
                                   o + 22, o + 24, o + 26, o + 28, o + 30);
#elif defined(__AVX__)
    return __builtin_shufflevector(a, b, o, o + 2, o + 4, o + 6, o + 8, o + 10, o + 12, o + 14);
#else
    return __builtin_shufflevector(a, b, o, o + 2, o + 4, o + 6);
#endif
}

// Transposes a square of vectors: each round of interleaving turns the numbers of lane and vector one bit on.
inline void transpose(Vector (&square)[lanes]) {
#pragma GCC unroll 4
    for (int round = 1; round < lanes; round *= 2) {
        Vector next[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes / 2; ++i) {
            next[2 * i] = interleave<false>(square[i], square[i + lanes / 2]);
            next[2 * i + 1] = interleave<true>(square[i], square[i + lanes / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
            square[i] = next[i];
        }
    }
}

}  // namespace sdcpp::cpu
