#include "sdcpp/kernels/graph.h"

namespace sdcpp {

bool kernels_at(ggml_backend_t backend) {
    const ggml_backend_dev_t device = backend != nullptr ? ggml_backend_get_device(backend) : nullptr;
    if (!sdcpp_kernels_fast() || device == nullptr) {
        return false;
    }
    // A device that lets the CPU compute says so.
    const ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    return ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU ||
           ggml_backend_reg_get_proc_address(reg, "sdcpp_kernels") != nullptr;
}

ggml_tensor* attention(ggml_context* ctx, ggml_backend_t backend, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                       const ggml_tensor* mask, float scale) {
    const int64_t n = v->ne[3];
    const bool plain = q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F32 && v->type == GGML_TYPE_F32 &&
                       q->nb[0] == sizeof(float) && k->nb[0] == sizeof(float) && v->nb[0] == sizeof(float);
    if (!kernels_at(backend) || mask != nullptr || !plain || (n > 1 && !(ggml_is_contiguous(q) && ggml_is_contiguous(k)))) {
        return nullptr;
    }
    if (n > 1) {
        q = ggml_reshape_4d(ctx, q, q->ne[0], q->ne[1], q->ne[2] / n, n);
        k = ggml_reshape_4d(ctx, k, k->ne[0], k->ne[1], k->ne[2] / n, n);
    }
    return ggml_flash_attn_ext(ctx, q, k, ggml_permute(ctx, v, 0, 2, 1, 3), nullptr, scale, 0.0f, 0.0f);
}

}  // namespace sdcpp
