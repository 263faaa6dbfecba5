// Copies of weights that are timed and counted.
#include "sdcpp/placement/weights_copy.h"

#include <chrono>
#include <cstdint>

#include "ggml.h"
#include "sdcpp/placement/weights_record.h"

namespace {

using sdcpp::WeightsBuffer;

bool on_host(const ggml_tensor* tensor) {
    ggml_backend_buffer_t buffer = sdcpp::buffer_of(tensor);
    return buffer == nullptr || ggml_backend_buffer_is_host(buffer);
}

template <typename F>
void timed_copy(const WeightsBuffer& weights, bool to_device, uint64_t bytes, F&& copy) {
    const auto begin = std::chrono::steady_clock::now();
    copy();
    if (weights.record) {
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        weights.record->copied(to_device, weights.pinned, bytes, seconds.count());
    }
}

}  // namespace

namespace sdcpp {

void weights_copy(ggml_tensor* src, ggml_tensor* dst) {
    const bool to_device = !on_host(dst);
    weights_changed(dst);
    if (!to_device && on_host(src)) {
        ggml_backend_tensor_copy(src, dst);
        return;
    }
    WeightsBuffer weights = weights_buffer(buffer_of(src));
    if (!weights.record) {
        weights = weights_buffer(buffer_of(dst));
    }
    timed_copy(weights, to_device, ggml_nbytes(src), [&] { ggml_backend_tensor_copy(src, dst); });
}

void weights_set(ggml_tensor* tensor, const void* data, size_t offset, size_t size) {
    WeightsBuffer weights;
    if (!on_host(tensor)) {
        weights = weights_buffer(data);
        if (!weights.record) {
            weights = weights_buffer(buffer_of(tensor));
            weights.pinned = false;
        }
    }
    timed_copy(weights, true, size, [&] { ggml_backend_tensor_set(tensor, data, offset, size); });
}

void weights_get(const ggml_tensor* tensor, void* data, size_t offset, size_t size) {
    const WeightsBuffer weights = on_host(tensor) ? WeightsBuffer{} : weights_buffer(buffer_of(tensor));
    timed_copy(weights, false, size, [&] { ggml_backend_tensor_get(tensor, data, offset, size); });
}

float weights_scalar(const ggml_tensor* tensor) {
    if (tensor->buffer == nullptr) {
        return 1.0f;  // of a survey
    }
    const auto read = [&](auto value) {
        weights_get(tensor, &value, 0, sizeof(value));
        return value;
    };
    switch (tensor->type) {
        case GGML_TYPE_F32:
            return read(float{});
        case GGML_TYPE_BF16:
            return ggml_bf16_to_fp32(read(ggml_bf16_t{}));
        case GGML_TYPE_F16:
            return ggml_fp16_to_fp32(read(ggml_fp16_t{}));
        default:
            return static_cast<float>(read(int32_t{}));
    }
}

}  // namespace sdcpp
