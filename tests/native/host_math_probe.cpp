// The host's arithmetic as a library of its own, so that tests can compare it with a reference.
#include <algorithm>
#include <vector>

#include "sdcpp/host/host_math.h"

#pragma GCC visibility push(default)
extern "C" {
// cdef begin

// Writes the first or the second number of each counter, as floats.
void host_math_philox(uint32_t count, uint64_t seed, uint32_t offset, bool second, float* numbers);
// Writes for each element of a shape its offsets in two tensors, and returns how many elements there are.
int64_t host_math_offsets(int dimensions, const int64_t* shape, const int64_t* left_shape, const int64_t* left_strides,
                          const int64_t* right_shape, const int64_t* right_strides, int64_t* offsets);

// cdef end

void host_math_philox(uint32_t count, uint64_t seed, uint32_t offset, bool second, float* numbers) {
    const std::vector<float> found =
        sdcpp::philox_floats(count, seed, offset, [&](float x, float y) { return second ? y : x; });
    std::copy(found.begin(), found.end(), numbers);
}

int64_t host_math_offsets(int dimensions, const int64_t* shape, const int64_t* left_shape, const int64_t* left_strides,
                          const int64_t* right_shape, const int64_t* right_strides, int64_t* offsets) {
    const auto list = [&](const int64_t* values) { return std::vector<int64_t>(values, values + dimensions); };
    int64_t count = 0;
    sdcpp::for_each_offset(list(shape), list(left_shape), list(left_strides), list(right_shape), list(right_strides),
                           [&](int64_t index, int64_t left, int64_t right) {
                               offsets[2 * index] = left;
                               offsets[2 * index + 1] = right;
                               ++count;
                           });
    return count;
}

}  // extern "C"
