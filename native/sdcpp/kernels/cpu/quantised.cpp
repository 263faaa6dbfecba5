#include "sdcpp/kernels/cpu/quantised.h"

#include <cstdint>
#include <cstring>

#include "ggml-cpu/quants.h"
#include "ggml-cpu/simd-mappings.h"
#include "sdcpp/kernels/cpu/vectors.h"

namespace sdcpp::cpu {

namespace {

// Codes are unpacked so many at a time, in a register: what is stored in smaller parts than it is read waits.
constexpr int some = 16;
typedef uint8_t Codes __attribute__((vector_size(some)));
constexpr int scales = QK_K / some;

float number(ggml_half half) {
#ifdef __F16C__
    return _cvtsh_ss(half);  // ggml's table takes a quarter of the second cache
#else
    return GGML_CPU_FP16_TO_FP32(half);
#endif
}

Codes bytes_at(const void* from) {
    Codes bytes;
    std::memcpy(&bytes, from, sizeof(bytes));
    return bytes;
}

// Stores codes * factor - less.
[[gnu::always_inline]] inline void put(float* to, Codes codes, float factor, float less) {
#if defined(__AVX512F__)
    store(to, (Vector)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)codes)) * factor - less);
#elif defined(__AVX2__)
    store(to, (Vector)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32((__m128i)codes)) * factor - less);
    const __m128i upper = _mm_unpackhi_epi64((__m128i)codes, (__m128i)codes);
    store(to + lanes, (Vector)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(upper)) * factor - less);
#else
    for (int i = 0; i < some; ++i) {
        to[i] = static_cast<float>(codes[i]) * factor - less;
    }
#endif
}

// Returns 16 for each of the first 16 bits that is set.
Codes fifth_bits(const uint8_t* bits) {
    constexpr Codes places = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    constexpr uint64_t each = 0x0101010101010101;
    typedef uint64_t Words __attribute__((vector_size(some)));
    const Words spread = {bits[0] * each, bits[1] * each};
    return (Codes)(((Codes)spread & places) == places) & 16;
}

// Blocks of 32 codes with a factor, of 4 bits the first half before the second in each byte.
void unpack(float* to, const block_q8_0& block) {
    const float factor = number(block.d);
    for (int i = 0; i < QK8_0; i += some) {
        put(to + i, bytes_at(block.qs + i) ^ 128, factor, 128.0f * factor);
    }
}

void unpack(float* to, const block_q4_0& block) {
    const float factor = number(block.d);
    const Codes pairs = bytes_at(block.qs);
    put(to, pairs & 15, factor, 8.0f * factor);
    put(to + some, pairs >> 4, factor, 8.0f * factor);
}

void unpack(float* to, const block_q4_1& block) {
    const float factor = number(block.d);
    const float less = -number(block.m);
    const Codes pairs = bytes_at(block.qs);
    put(to, pairs & 15, factor, less);
    put(to + some, pairs >> 4, factor, less);
}

template <typename Block>
void unpack_fives(float* to, const Block& block, float factor, float less) {
    const Codes pairs = bytes_at(block.qs);
    put(to, (pairs & 15) | fifth_bits(block.qh), factor, less);
    put(to + some, pairs >> 4 | fifth_bits(block.qh + 2), factor, less);
}

void unpack(float* to, const block_q5_0& block) {
    const float factor = number(block.d);
    unpack_fives(to, block, factor, 16.0f * factor);
}

void unpack(float* to, const block_q5_1& block) {
    unpack_fives(to, block, number(block.d), -number(block.m));
}

// Blocks of 256 codes, whose groups have scales of few bits. Halves of such blocks are four times 32 codes, of two bits
// each from the lowest on in the same bytes.
void unpack(float* to, const block_q2_K& block) {
    const float factor = number(block.d);
    const float less = number(block.dmin);
#pragma GCC unroll 16
    for (int i = 0; i < scales; ++i, to += some) {
        const Codes codes = bytes_at(block.qs + i / 8 * 32 + i % 2 * some) >> (i % 8 / 2 * 2) & 3;
        put(to, codes, factor * static_cast<float>(block.scales[i] & 15),
            less * static_cast<float>(block.scales[i] >> 4));
    }
}

void unpack(float* to, const block_q3_K& block) {
    const float whole = number(block.d);
#pragma GCC unroll 16
    for (int i = 0; i < scales; ++i, to += some) {
        const int low = i < 8 ? block.scales[i] & 15 : block.scales[i - 8] >> 4;
        const int high = block.scales[8 + i % 4] >> (i / 4 * 2) & 3;
        const float factor = whole * static_cast<float>((low | high << 4) - 32);
        const Codes codes = bytes_at(block.qs + i / 8 * 32 + i % 2 * some) >> (i % 8 / 2 * 2) & 3;
        const Codes third = bytes_at(block.hmask + i % 2 * some) >> (i / 2) & 1;
        put(to, codes | third << 2, factor, 4.0f * factor);
    }
}

void unpack(float* to, const block_q6_K& block) {
    const float whole = number(block.d);
#pragma GCC unroll 16
    for (int i = 0; i < scales; ++i, to += some) {
        const float factor = whole * static_cast<float>(block.scales[i]);
        const Codes pairs = bytes_at(block.ql + i / 8 * 64 + i % 4 * some);
        const Codes high = bytes_at(block.qh + i / 8 * 32 + i % 2 * some) >> (i % 8 / 2 * 2) & 3;
        put(to, (i % 8 < 4 ? pairs & 15 : pairs >> 4) | high << 4, factor, 32.0f * factor);
    }
}

// Returns a scale of q4_K and q5_K, six bits of a factor and of what is subtracted, for each 32 codes.
template <typename Block>
int factor_of(const Block& block, int i) {
    const uint8_t* const from = block.scales;
    return i < 4 ? from[i] & 63 : (from[4 + i] & 15) | from[i - 4] >> 6 << 4;
}

template <typename Block>
int less_of(const Block& block, int i) {
    const uint8_t* const from = block.scales;
    return i < 4 ? from[4 + i] & 63 : from[4 + i] >> 4 | from[i] >> 6 << 4;
}

// Unpacks four times 64 codes of 4 bits, with what is more of them.
template <typename Block, typename F>
[[gnu::always_inline]] inline void unpack_fours(float* to, const Block& block, F&& more) {
    const float factor = number(block.d);
    const float less = number(block.dmin);
#pragma GCC unroll 16
    for (int i = 0; i < scales; ++i, to += some) {
        const Codes pairs = bytes_at(block.qs + i / 4 * 32 + i % 2 * some);
        put(to, (i % 4 < 2 ? pairs & 15 : pairs >> 4) | more(i), factor * static_cast<float>(factor_of(block, i / 2)),
            less * static_cast<float>(less_of(block, i / 2)));
    }
}

void unpack(float* to, const block_q4_K& block) {
    unpack_fours(to, block, [](int) { return Codes{}; });
}

void unpack(float* to, const block_q5_K& block) {
    unpack_fours(to, block, [&](int i) { return (bytes_at(block.qh + i % 2 * some) >> (i / 2) & 1) << 4; });
}

template <int each, typename Block>
void unpack_blocks(float* to, const char* from, int count) {
    const auto* block = reinterpret_cast<const Block*>(from);
    for (int done = 0; done < count; done += each, ++block) {
        unpack(to + done, *block);
    }
}

}  // namespace

bool quantised_to_floats(float* to, ggml_type type, const char* from, int count) {
    switch (type) {
        case GGML_TYPE_Q4_0:
            unpack_blocks<QK4_0, block_q4_0>(to, from, count);
            return true;
        case GGML_TYPE_Q4_1:
            unpack_blocks<QK4_1, block_q4_1>(to, from, count);
            return true;
        case GGML_TYPE_Q5_0:
            unpack_blocks<QK5_0, block_q5_0>(to, from, count);
            return true;
        case GGML_TYPE_Q5_1:
            unpack_blocks<QK5_1, block_q5_1>(to, from, count);
            return true;
        case GGML_TYPE_Q8_0:
            unpack_blocks<QK8_0, block_q8_0>(to, from, count);
            return true;
        case GGML_TYPE_Q2_K:
            unpack_blocks<QK_K, block_q2_K>(to, from, count);
            return true;
        case GGML_TYPE_Q3_K:
            unpack_blocks<QK_K, block_q3_K>(to, from, count);
            return true;
        case GGML_TYPE_Q4_K:
            unpack_blocks<QK_K, block_q4_K>(to, from, count);
            return true;
        case GGML_TYPE_Q5_K:
            unpack_blocks<QK_K, block_q5_K>(to, from, count);
            return true;
        case GGML_TYPE_Q6_K:
            unpack_blocks<QK_K, block_q6_K>(to, from, count);
            return true;
        default:
            return false;
    }
}

}  // namespace sdcpp::cpu
