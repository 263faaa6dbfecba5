// The vectors of a CPU variant, as wide as its registers, and the block of results that fills them. Compilers make each
// variant's own instructions of them, multiply-adds included where it has them.
#pragma once

#include <cstdint>

#ifdef __AVX__
#include <immintrin.h>
#ifdef __AVX512BF16__
#define SDCPP_KERNELS_BF16
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
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

// Returns sum + left * right, rounded once where the processor does so, with any of the compiler's options.
inline Vector add_product(Vector sum, Vector left, Vector right) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)left, (__m512)right, (__m512)sum);
#elif defined(__AVX__) && defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)left, (__m256)right, (__m256)sum);
#elif defined(__aarch64__)
    return (Vector)vfmaq_f32((float32x4_t)sum, (float32x4_t)left, (float32x4_t)right);
#else
    return sum + left * right;
#endif
}

// Returns a number in each lane.
inline Vector all_of(float number) {
#if defined(__AVX512F__)
    return (Vector)_mm512_set1_ps(number);
#elif defined(__AVX__)
    return (Vector)_mm256_set1_ps(number);
#else
    return Vector{} + number;
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

#if defined(__AVX__)
// Transposes each 4x4 lanes of 4 vectors.
inline void transpose_quads(Vector& a, Vector& b, Vector& c, Vector& d) {
#if defined(__AVX512F__)
    const __m512d ab_low = (__m512d)_mm512_unpacklo_ps((__m512)a, (__m512)b);
    const __m512d ab_high = (__m512d)_mm512_unpackhi_ps((__m512)a, (__m512)b);
    const __m512d cd_low = (__m512d)_mm512_unpacklo_ps((__m512)c, (__m512)d);
    const __m512d cd_high = (__m512d)_mm512_unpackhi_ps((__m512)c, (__m512)d);
    a = (Vector)_mm512_unpacklo_pd(ab_low, cd_low);
    b = (Vector)_mm512_unpackhi_pd(ab_low, cd_low);
    c = (Vector)_mm512_unpacklo_pd(ab_high, cd_high);
    d = (Vector)_mm512_unpackhi_pd(ab_high, cd_high);
#else
    const __m256d ab_low = (__m256d)_mm256_unpacklo_ps((__m256)a, (__m256)b);
    const __m256d ab_high = (__m256d)_mm256_unpackhi_ps((__m256)a, (__m256)b);
    const __m256d cd_low = (__m256d)_mm256_unpacklo_ps((__m256)c, (__m256)d);
    const __m256d cd_high = (__m256d)_mm256_unpackhi_ps((__m256)c, (__m256)d);
    a = (Vector)_mm256_unpacklo_pd(ab_low, cd_low);
    b = (Vector)_mm256_unpackhi_pd(ab_low, cd_low);
    c = (Vector)_mm256_unpacklo_pd(ab_high, cd_high);
    d = (Vector)_mm256_unpackhi_pd(ab_high, cd_high);
#endif
}

// Transposes a square of vectors: in fours of lanes, which shuffles leave where they are, then those.
inline void transpose(Vector (&square)[lanes]) {
#pragma GCC unroll 4
    for (int i = 0; i < lanes; i += 4) {
        transpose_quads(square[i], square[i + 1], square[i + 2], square[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
        const auto a = (__m512)square[i];
        const auto b = (__m512)square[i + 4];
        const auto c = (__m512)square[i + 8];
        const auto d = (__m512)square[i + 12];
        const __m512 ab_even = _mm512_shuffle_f32x4(a, b, 0x88);
        const __m512 ab_odd = _mm512_shuffle_f32x4(a, b, 0xdd);
        const __m512 cd_even = _mm512_shuffle_f32x4(c, d, 0x88);
        const __m512 cd_odd = _mm512_shuffle_f32x4(c, d, 0xdd);
        square[i] = (Vector)_mm512_shuffle_f32x4(ab_even, cd_even, 0x88);
        square[i + 4] = (Vector)_mm512_shuffle_f32x4(ab_odd, cd_odd, 0x88);
        square[i + 8] = (Vector)_mm512_shuffle_f32x4(ab_even, cd_even, 0xdd);
        square[i + 12] = (Vector)_mm512_shuffle_f32x4(ab_odd, cd_odd, 0xdd);
#else
        const auto a = (__m256)square[i];
        const auto b = (__m256)square[i + 4];
        square[i] = (Vector)_mm256_permute2f128_ps(a, b, 0x20);
        square[i + 4] = (Vector)_mm256_permute2f128_ps(a, b, 0x31);
#endif
    }
}
#else
// Interleaves the lower or the upper halves of two vectors.
template <bool upper>
inline Vector interleave(Vector a, Vector b) {
    constexpr int o = upper ? lanes / 2 : 0;
    return __builtin_shufflevector(a, b, o, o + 4, o + 1, o + 5);
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

#endif

// Stores the sums of a block, a column each `stride` floats, or adds them to what is there.
template <int vectors, int columns>
[[gnu::always_inline]] inline void block_store(const Vector (&sums)[columns][vectors], float* result, int64_t stride,
                                               bool add) {
#pragma GCC unroll 16
    for (int c = 0; c < columns; ++c) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            float* const to = result + c * stride + v * lanes;
            store(to, add ? load(to) + sums[c][v] : sums[c][v]);
        }
    }
}

}  // namespace sdcpp::cpu
