#include "sdcpp/streaming/cost.h"

namespace sdcpp {

namespace {

constexpr double flop_rate = 25e12;
constexpr double memory_rate = 360e9;
constexpr double operation_seconds = 2e-6;  // what each takes to begin

double bytes_of(const ggml_tensor* tensor) {
    return static_cast<double>(ggml_row_size(tensor->type, tensor->ne[0])) * static_cast<double>(ggml_nrows(tensor));
}

}  // namespace

Work work_of(const ggml_tensor* node) {
    const auto elements = static_cast<double>(ggml_nelements(node));
    const ggml_tensor* a = node->src[0];
    switch (node->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            return {2.0 * static_cast<double>(a->ne[0]) * elements, 0.0};
        case GGML_OP_CONV_2D:
            return {2.0 * static_cast<double>(a->ne[0] * a->ne[1] * a->ne[2]) * elements, 0.0};
        case GGML_OP_FLASH_ATTN_EXT:
            return {2.0 * static_cast<double>(a->ne[1] * a->ne[2] * a->ne[3] * node->src[1]->ne[1]) *
                        static_cast<double>(node->src[1]->ne[0] + node->src[2]->ne[0]),
                    0.0};
        case GGML_OP_GET_ROWS:
            return {0.0, 2.0 * bytes_of(node)};
        default:
            break;
    }
    // Of these a source is not read: the kernel, which is there for its shape, or the destination.
    const bool im2col = node->op == GGML_OP_IM2COL || node->op == GGML_OP_IM2COL_3D;
    const int unread = im2col ? 0 : node->op == GGML_OP_CPY ? 1 : -1;
    double bytes = bytes_of(node);
    for (int i = 0; i < GGML_MAX_SRC && node->src[i] != nullptr; ++i) {
        bytes += i != unread ? bytes_of(node->src[i]) : 0.0;
    }
    return {0.0, bytes};
}

bool computes(const ggml_tensor* node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return false;
        default:
            return !ggml_is_empty(node);
    }
}

double cost_of(const ggml_tensor* node) {
    const Work work = work_of(node);
    return operation_seconds + work.flops / flop_rate + work.moved_bytes / memory_rate;
}

}  // namespace sdcpp
