// What the engine computes on the host between two steps, with the same results in a tenth of the time. The device waits
// for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sdcpp {

// Returns what `normal` makes of the first two numbers of Philox4x32-10 (Salmon and others, "Parallel random numbers: as
// easy as 1, 2, 3", 2011) with the key `seed` and the counter (offset, 0, i, 0), for each i below `count`.
template <typename F>
std::vector<float> philox_floats(uint32_t count, uint64_t seed, uint32_t offset, F&& normal) {
    std::vector<float> floats(count);
    for (uint32_t i = 0; i < count; ++i) {
        uint32_t c0 = offset, c1 = 0, c2 = i, c3 = 0;
        auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < 10; ++round) {
            const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
            c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
            c1 = static_cast<uint32_t>(p1);
            c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
            c3 = static_cast<uint32_t>(p0);
            k0 += 0x9E3779B9;
            k1 += 0xBB67AE85;
        }
        floats[i] = normal(static_cast<float>(c0), static_cast<float>(c1));
    }
    return floats;
}

// Calls `each` with the index of every element of a shape, whose first dimension is the contiguous one, and its offsets in
// two tensors. Those are broadcast in a dimension where their own shape is 1.
template <typename F>
void for_each_offset(const std::vector<int64_t>& shape, const std::vector<int64_t>& left_shape,
                     std::vector<int64_t> left_strides, const std::vector<int64_t>& right_shape,
                     std::vector<int64_t> right_strides, F&& each) {
    int64_t count = shape.empty() ? 0 : 1;
    for (size_t i = 0; i < shape.size(); ++i) {
        count *= shape[i];
        left_strides[i] = left_shape[i] == 1 ? 0 : left_strides[i];
        right_strides[i] = right_shape[i] == 1 ? 0 : right_strides[i];
    }
    std::vector<int64_t> at(shape.size(), 0);
    int64_t l = 0, r = 0;
    for (int64_t index = 0; index < count;) {
        for (int64_t i = 0; i < shape[0]; ++i) {
            each(index++, l + i * left_strides[0], r + i * right_strides[0]);
        }
        for (size_t i = 1; i < shape.size(); ++i) {
            l += left_strides[i];
            r += right_strides[i];
            if (++at[i] < shape[i]) {
                break;
            }
            l -= left_strides[i] * shape[i];
            r -= right_strides[i] * shape[i];
            at[i] = 0;
        }
    }
}

}  // namespace sdcpp
