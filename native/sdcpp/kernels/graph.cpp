#include "sdcpp/kernels/graph.h"

#include <algorithm>
#include <iterator>

#include "ggml-impl.h"
#include "sdcpp/kernels/attention_depths.h"
#include "sdcpp/kernels/conv_2d_params.h"
#include "sdcpp/kernels/group_norm_params.h"

namespace sdcpp {

namespace {

// Sums of up to so many channels lie in their input's memory: those of an autoencoder's largest pictures, which decide
// what it holds at most. Others would leave gaps where those are to lie.
constexpr int64_t in_place_channels = 128;

// Which kernels the graphs that this thread builds are for: those for CUDA norm and double what they convolve, those
// for the CPU do what follows a norm.
enum class Kernels { none, cpu, cuda };
thread_local Kernels kernels_here = Kernels::none;

bool is_cuda(ggml_backend_t backend) {
    const ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
    return ggml_backend_reg_get_proc_address(reg, "sdcpp_kernels_cuda") != nullptr;
}

// Returns a source of an operation of a kind; NULL where it is another.
ggml_tensor* source_of(const ggml_tensor* node, ggml_op op, int which = 0) {
    return node != nullptr && node->op == op ? node->src[which] : nullptr;
}

bool permutes(const ggml_tensor* tensor, int a, int b, int c, int d) {
    const int32_t axes[] = {a, b, c, d};
    return tensor != nullptr && tensor->op == GGML_OP_PERMUTE &&
           std::equal(std::begin(axes), std::end(axes), tensor->op_params);
}

// Tells whether our kernels convolve with filters.
bool are_filters(const ggml_tensor* filters) {
    return !ggml_is_quantized(filters->type) && ggml_is_contiguous(filters) &&
           filters->ne[0] * filters->ne[1] <= conv_2d_taps;
}

// Tells whether a node is a convolution that our kernels compute.
bool is_convolution(const ggml_tensor* node) {
    return node->op == GGML_OP_CONV_2D && are_filters(node->src[0]);
}

// Returns the convolution whose values with a bias added in place are a tensor's; NULL: they are none's.
ggml_tensor* convolution_of(ggml_tensor* tensor) {
    ggml_tensor* const node = tensor->op == GGML_OP_ADD && tensor->view_src == tensor->src[0] ? tensor->src[0] : tensor;
    return is_convolution(node) && node->view_src == nullptr ? node : nullptr;
}

// Lets a convolution, and the sum with its bias, lie in another tensor's memory.
void lie_in(ggml_tensor* node, ggml_tensor* biased, ggml_tensor* memory) {
    for (ggml_tensor* tensor : {node, biased}) {
        tensor->view_src = memory->view_src != nullptr ? memory->view_src : memory;
        tensor->view_offs = memory->view_offs;
    }
}

// Tells whether a tensor's memory is for values that a graph computes and that only its nodes read.
bool is_own(const ggml_tensor* tensor) {
    const ggml_tensor* const values = tensor->view_src != nullptr ? tensor->view_src : tensor;
    const int flags = tensor->flags | values->flags;
    return tensor->type == GGML_TYPE_F32 && ggml_is_contiguous(tensor) && values->op != GGML_OP_NONE &&
           (flags & (GGML_TENSOR_FLAG_INPUT | GGML_TENSOR_FLAG_OUTPUT)) == 0;
}

bool is_for_channels(const ggml_tensor* numbers, const ggml_tensor* picture) {
    return numbers->type == GGML_TYPE_F32 && ggml_is_contiguous(numbers) && numbers->ne[2] == picture->ne[2] &&
           ggml_nelements(numbers) == picture->ne[2];
}

// A group norm with a factor and a summand for each channel, and perhaps SiLU.
struct Normed {
    const ggml_tensor* norm = nullptr;  // NULL: there is none
    ggml_tensor *picture = nullptr, *factor = nullptr, *summand = nullptr;
    bool silu = false;
};

Normed normed(const ggml_tensor* values) {
    const bool silu = values->op == GGML_OP_UNARY && ggml_get_unary_op(values) == GGML_UNARY_OP_SILU;
    const ggml_tensor* const sum = silu ? values->src[0] : values;
    const ggml_tensor* const product = source_of(sum, GGML_OP_ADD);
    const ggml_tensor* const norm = source_of(product, GGML_OP_MUL);
    ggml_tensor* const picture = source_of(norm, GGML_OP_GROUP_NORM);
    if (picture == nullptr || picture->type != GGML_TYPE_F32 || !is_for_channels(product->src[1], picture) ||
        !is_for_channels(sum->src[1], picture)) {
        return {};
    }
    return {norm, picture, product->src[1], sum->src[1], silu};
}

// The same where it can be part of a convolution for CUDA.
Normed normed_for_convolution(const ggml_tensor* values) {
    const Normed found = normed(values);
    const bool fits = found.norm != nullptr && found.silu && ggml_is_contiguous(found.picture) &&
                      found.picture->ne[2] % ggml_get_op_params_i32(found.norm, 0) == 0;
    return fits ? found : Normed{};
}

// Makes what follows a group norm compute the norm as well. Whoever else reads the norm has it as before.
void norm_with_rest(ggml_tensor* picture) {
    const Normed found = normed(picture);
    if (found.norm == nullptr || found.picture->nb[0] != sizeof(float) || !ggml_is_contiguous(picture) ||
        !ggml_are_same_shape(picture, found.picture)) {
        return;
    }
    const int32_t groups = ggml_get_op_params_i32(found.norm, 0);
    const float eps = ggml_get_op_params_f32(found.norm, 1);
    picture->op = GGML_OP_GROUP_NORM;
    picture->src[0] = found.picture;
    picture->src[1] = found.factor;
    picture->src[2] = found.summand;
    picture->view_src = nullptr;  // where SiLU or the sum was to be in the place of what it is of
    picture->view_offs = 0;
    std::fill(std::begin(picture->op_params), std::end(picture->op_params), 0);
    ggml_set_op_params_i32(picture, 0, groups);
    ggml_set_op_params_f32(picture, 1, eps);
    ggml_set_op_params_i32(picture, group_norm_silu, found.silu ? 1 : 0);
}

// Returns a picture of half the width and height that a tensor is; NULL: it is none. One that is scaled afterwards is
// scaled before it is doubled instead.
ggml_tensor* doubled(ggml_tensor* picture) {
    const bool scaled = picture->op == GGML_OP_SCALE && picture->view_src == nullptr;
    const ggml_tensor* const large = scaled ? picture->src[0] : picture;
    ggml_tensor* const small = source_of(large, GGML_OP_UPSCALE);
    if (small == nullptr || ggml_get_op_params_i32(large, 0) != GGML_SCALE_MODE_NEAREST ||
        large->ne[0] != 2 * small->ne[0] || large->ne[1] != 2 * small->ne[1] || large->ne[2] != small->ne[2] ||
        large->ne[3] != small->ne[3]) {
        return nullptr;
    }
    if (!scaled) {
        return small;
    }
    if (!ggml_is_contiguous(small)) {
        return nullptr;
    }
    std::copy_n(small->ne, GGML_MAX_DIMS, picture->ne);
    std::copy_n(small->nb, GGML_MAX_DIMS, picture->nb);
    picture->src[0] = small;
    return picture;
}

}  // namespace

bool kernels_at(ggml_backend_t backend) {
    kernels_here = Kernels::none;
    const ggml_backend_dev_t device = backend != nullptr ? ggml_backend_get_device(backend) : nullptr;
    if (!sdcpp_kernels_fast() || device == nullptr) {
        return false;
    }
    // A device that lets the CPU compute says so.
    const ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    if (is_cuda(backend)) {
        kernels_here = Kernels::cuda;
    } else if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU ||
               ggml_backend_reg_get_proc_address(reg, "sdcpp_kernels") != nullptr) {
        kernels_here = Kernels::cpu;
    }
    return kernels_here != Kernels::none;
}

ggml_tensor* convolution(ggml_tensor* node) {
    ggml_tensor* const picture = node->src[1];
    if (kernels_here == Kernels::cpu) {
        norm_with_rest(picture);
    }
    if (kernels_here != Kernels::cuda || !is_convolution(node)) {
        return node;
    }
    if (const Normed before = normed_for_convolution(picture); before.norm != nullptr) {
        node->src[1] = before.picture;
        node->src[2] = before.factor;
        node->src[3] = before.summand;
        node->op_params[conv_2d_groups] = before.norm->op_params[0];
        node->op_params[conv_2d_eps] = before.norm->op_params[1];
    } else if (ggml_tensor* const small = doubled(picture)) {
        node->src[1] = small;
        node->op_params[conv_2d_doublings] = 1;
    }
    return node;
}

float convolution_scale(const ggml_tensor* filters, const ggml_tensor* picture, float scale) {
    return kernels_here == Kernels::cuda && are_filters(filters) && normed_for_convolution(picture).norm != nullptr
               ? 1.0f
               : scale;
}

ggml_tensor* residual(ggml_context* ctx, ggml_tensor* sum, ggml_tensor* input) {
    ggml_tensor* const last = kernels_here == Kernels::cuda ? convolution_of(sum) : nullptr;
    if (last == nullptr || !is_own(input) || !ggml_are_same_shape(sum, input) || sum->ne[2] > in_place_channels) {
        return ggml_add(ctx, sum, input);
    }
    // A convolution of one tap reads what lies in a pixel before it writes there; it comes after the block's first one,
    // which reads the same picture, since it is the last source of the sum.
    const ggml_tensor* const first = convolution_of(last->src[1]);
    ggml_tensor* const shortcut = convolution_of(input);
    ggml_tensor* const picture = shortcut != nullptr ? shortcut->src[1] : nullptr;
    if (picture != nullptr && first != nullptr && first->src[1] == picture &&
        shortcut->src[0]->ne[0] * shortcut->src[0]->ne[1] == 1 && shortcut->src[2] == nullptr &&
        shortcut->op_params[conv_2d_doublings] == 0 && picture->ne[0] == shortcut->ne[0] &&
        picture->ne[1] == shortcut->ne[1] && picture->ne[2] >= shortcut->ne[2] && picture->ne[3] == 1 &&
        is_own(picture)) {
        lie_in(shortcut, input, picture);
    }
    last->src[conv_2d_summand] = input;
    lie_in(last, sum, input);
    return sum;
}

namespace {

// Returns keys or values as halves, scaled, and with zeros up to a depth. Heads stay where a product left them, which
// rounds for them itself.
ggml_tensor* halves(ggml_context* ctx, ggml_tensor* values, int64_t depth, float scale) {
    const bool permuted = permutes(values, 0, 2, 1, 3);
    values = permuted ? values->src[0] : values;
    if (scale != 1.0f || depth != values->ne[0]) {
        values = ggml_is_contiguous(values) ? values : ggml_cont(ctx, values);
    }
    if (depth != values->ne[0]) {
        values = ggml_pad(ctx, values, static_cast<int>(depth - values->ne[0]), 0, 0, 0);
    }
    values = ggml_cast(ctx, scale != 1.0f ? ggml_scale(ctx, values, scale) : values, GGML_TYPE_F16);
    return permuted ? ggml_permute(ctx, values, 0, 2, 1, 3) : values;
}

// The same with halves. There is no mask for keys that there are not, as there are none.
ggml_tensor* attention_in_halves(ggml_context* ctx, ggml_backend_t backend, ggml_tensor* q, ggml_tensor* k,
                                 ggml_tensor* v, float scale, float kv_scale) {
    const int64_t depth = q->ne[0];
    const auto* const found = std::find_if(std::begin(attention_depths), std::end(attention_depths),
                                           [&](int there_is) { return there_is >= depth; });
    if (found == std::end(attention_depths)) {
        return nullptr;
    }
    const int64_t wide = *found;  // zeros add nothing
    k = halves(ctx, k, wide, kv_scale);
    v = halves(ctx, v, wide, kv_scale);
    if (wide != depth) {
        q = ggml_pad(ctx, ggml_is_contiguous(q) ? q : ggml_cont(ctx, q), static_cast<int>(wide - depth), 0, 0, 0);
    }
    ggml_tensor* out = ggml_flash_attn_ext(ctx, q, k, v, nullptr, scale / kv_scale, 0.0f, 0.0f);
    ggml_flash_attn_ext_set_prec(out, GGML_PREC_F32);
    if (!ggml_backend_supports_op(backend, out)) {
        return nullptr;
    }
    out = kv_scale != 1.0f ? ggml_scale(ctx, out, 1.0f / kv_scale) : out;
    return wide == depth ? out
                         : ggml_view_4d(ctx, out, depth, out->ne[1], out->ne[2], out->ne[3], out->nb[1], out->nb[2],
                                        out->nb[3], 0);
}

// Returns the tensor whose values a tensor has in another shape.
ggml_tensor* unshaped(ggml_tensor* tensor) {
    while (tensor != nullptr && tensor->op == GGML_OP_RESHAPE) {
        tensor = tensor->src[0];
    }
    return tensor;
}

// Returns the tensor that a tensor is the first or the second half of; NULL: of none.
ggml_tensor* half_of(ggml_tensor* tensor, int which) {
    ggml_tensor* const whole = source_of(unshaped(tensor), GGML_OP_VIEW);
    return whole != nullptr && ggml_is_contiguous(tensor) && 2 * ggml_nelements(tensor) == ggml_nelements(whole) &&
                   unshaped(tensor)->view_offs == ggml_nbytes(whole) / 2 * static_cast<size_t>(which)
               ? whole
               : nullptr;
}

// Makes one node of the copies, repetitions, products and the sum that turn queries or keys by angles. Whoever else
// reads what was between has it as before.
void rotate_at_once(ggml_tensor* values) {
    ggml_tensor* const sum = unshaped(values);
    ggml_tensor* pairs[2] = {};
    ggml_tensor* angles[2] = {};
    for (int i = 0; i < 2; ++i) {
        ggml_tensor* const product = source_of(sum, GGML_OP_ADD, i);
        pairs[i] = half_of(source_of(source_of(product, GGML_OP_MUL), GGML_OP_REPEAT), i);
        angles[i] = half_of(source_of(product, GGML_OP_MUL, 1), i);
    }
    ggml_tensor* const split = source_of(pairs[0], GGML_OP_CONT);
    ggml_tensor* const turned = source_of(angles[0], GGML_OP_CONT);
    if (pairs[0] != pairs[1] || angles[0] != angles[1] || !permutes(split, 3, 0, 1, 2) ||
        !permutes(turned, 3, 0, 1, 2)) {
        return;
    }
    ggml_tensor* const apart = source_of(unshaped(split->src[0]), GGML_OP_CONT);
    ggml_tensor* const matrices = turned->src[0];
    if (!permutes(apart, 0, 2, 1, 3)) {
        return;
    }
    ggml_tensor* const before = apart->src[0];
    const auto is_plain = [](const ggml_tensor* tensor) {
        return tensor->type == GGML_TYPE_F32 && tensor->nb[0] == sizeof(float);
    };
    if (!is_plain(before) || !is_plain(matrices) || !ggml_is_contiguous(matrices) || split->src[0]->ne[0] != 2 ||
        values->ne[0] != before->ne[0] || values->ne[1] != before->ne[2] || matrices->ne[0] != 2 ||
        matrices->ne[1] != 2 || 2 * matrices->ne[2] != before->ne[0] || matrices->ne[3] != before->ne[2]) {
        return;
    }
    values->op = GGML_OP_ROPE;
    values->src[0] = before;
    values->src[1] = matrices;
    values->view_src = nullptr;
    values->view_offs = 0;
}

// Returns queries or keys as they were before their heads were laid one behind the other, as [d, rows, heads, n]; or as
// they are.
ggml_tensor* strided(ggml_tensor* values, int64_t n) {
    ggml_tensor* const copied = source_of(values, GGML_OP_RESHAPE);
    ggml_tensor* const permuted = source_of(copied, GGML_OP_CONT);
    return permuted != nullptr && permuted->ne[0] == values->ne[0] && permuted->ne[1] == values->ne[1] &&
                   permuted->ne[3] == n && permuted->type == GGML_TYPE_F32 && permuted->nb[0] == sizeof(float)
               ? permuted
               : values;
}

// Returns them as [d, rows, heads, n].
ggml_tensor* batched(ggml_context* ctx, ggml_tensor* values, int64_t n) {
    return values->ne[3] == n ? values
                              : ggml_reshape_4d(ctx, values, values->ne[0], values->ne[1], values->ne[2] / n, n);
}

bool is_mask_for(const ggml_tensor* mask, const ggml_tensor* q, const ggml_tensor* k, int64_t n) {
    return mask->type == GGML_TYPE_F32 && mask->nb[0] == sizeof(float) && mask->ne[0] == k->ne[1] &&
           mask->ne[1] == q->ne[1] && q->ne[2] / n % mask->ne[2] == 0 && mask->ne[3] == 1;
}

}  // namespace

ggml_tensor* attention(ggml_context* ctx, ggml_backend_t backend, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                       ggml_tensor* mask, float scale, float kv_scale) {
    const int64_t n = v->ne[3];
    const bool plain = q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F32 && v->type == GGML_TYPE_F32 &&
                       q->nb[0] == sizeof(float) && k->nb[0] == sizeof(float) && v->nb[0] == sizeof(float);
    if (!kernels_at(backend) || !plain || (mask != nullptr && (is_cuda(backend) || !is_mask_for(mask, q, k, n))) ||
        (n > 1 && !(ggml_is_contiguous(q) && ggml_is_contiguous(k)))) {
        return nullptr;
    }
    v = ggml_permute(ctx, v, 0, 2, 1, 3);
    q = batched(ctx, strided(q, n), n);
    k = batched(ctx, strided(k, n), n);
    if (is_cuda(backend)) {
        return attention_in_halves(ctx, backend, q, k, v, scale, kv_scale);
    }
    rotate_at_once(q);
    rotate_at_once(k);
    ggml_tensor* const out = ggml_flash_attn_ext(ctx, q, k, v, nullptr, scale, 0.0f, 0.0f);
    out->src[3] = mask;  // ggml's own would be of halves
    return out;
}

uint64_t kernel_pool_bytes(const ggml_tensor* node) {
    if (!sdcpp_kernels_fast() || node->op != GGML_OP_CONV_2D) {
        // Heads that are rotated may have to be laid aside first.
        return sdcpp_kernels_fast() && node->op == GGML_OP_REPEAT ? ggml_nbytes(node) : 0;
    }
    const ggml_tensor* const filters = node->src[0];
    const ggml_tensor* const picture = node->src[1];
    const auto channels = static_cast<uint64_t>(GGML_PAD(filters->ne[2], conv_2d_channels));
    const auto row = static_cast<uint64_t>(picture->ne[0]) * channels * sizeof(ggml_fp16_t);
    const auto rows = std::min(static_cast<uint64_t>(picture->ne[1]), conv_2d_staged_bytes / row + filters->ne[1] + 2);
    return rows * row +
           static_cast<uint64_t>(filters->ne[0] * filters->ne[1] * filters->ne[3]) * channels * sizeof(ggml_fp16_t) +
           conv_2d_sum_bytes;
}

uint64_t kernel_kept_bytes(const ggml_tensor* node) {
    const bool keeps = sdcpp_kernels_fast() && node->op == GGML_OP_MUL_MAT && !ggml_is_quantized(node->src[0]->type);
    return keeps ? static_cast<uint64_t>(ggml_nelements(node->src[1])) * sizeof(ggml_fp16_t) : 0;
}

}  // namespace sdcpp
