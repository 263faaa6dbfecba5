#include "sdcpp/conversion/stored_numbers.h"

#include "model_io/tensor_storage.h"

// Of the engine's loader; no header declares them.
void f8_e4m3_to_f16_vec(uint8_t* src, uint16_t* dst, int64_t n);
void f8_e5m2_to_f16_vec(uint8_t* src, uint16_t* dst, int64_t n);
void f64_to_f32_vec(double* src, float* dst, int64_t n);
void i64_to_i32_vec(int64_t* src, int32_t* dst, int64_t n);

namespace sdcpp {

bool is_stored_otherwise(const TensorStorage& tensor) {
    return tensor.is_f8_e4m3 || tensor.is_f8_e5m2 || tensor.is_f64 || tensor.is_i64;
}

void take_stored(const TensorStorage& tensor, void* stored, void* taken, int64_t count) {
    if (tensor.is_f8_e4m3) {
        f8_e4m3_to_f16_vec(static_cast<uint8_t*>(stored), static_cast<uint16_t*>(taken), count);
    } else if (tensor.is_f8_e5m2) {
        f8_e5m2_to_f16_vec(static_cast<uint8_t*>(stored), static_cast<uint16_t*>(taken), count);
    } else if (tensor.is_f64) {
        f64_to_f32_vec(static_cast<double*>(stored), static_cast<float*>(taken), count);
    } else {
        i64_to_i32_vec(static_cast<int64_t*>(stored), static_cast<int32_t*>(taken), count);
    }
}

}  // namespace sdcpp
