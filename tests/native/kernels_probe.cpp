// Computes a product, a convolution, attention, a group norm, GELU or a rotation of given values on the CPU backend
// under either kernel policy, each as the engine builds it. Part of the engine library in test builds only.
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "ggml-cpp.h"
#include "ggml_extend_backend.hpp"
#include "rope.hpp"
#include "sdcpp/api/run.h"
#include "sdcpp/kernels/graph.h"
#include "sdcpp/kernels/policy.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"

namespace {

using namespace sdcpp;

// One operand: its shape, and how it lies in memory.
struct Operand {
    int64_t type;
    int64_t ne[4];
    int64_t padding;   // blocks of values between two rows that are not part of it
    int64_t permuted;  // the second and the third dimension lie the other way round
};

enum class Kind : int64_t { product, convolution, attention, norm, gelu, rotation };

struct Case {
    Kind kind;
    // Of attention keys, queries, values and a mask; of a norm a picture, and factors and summands of its channels; of
    // a rotation values and matrices. A type below zero: there is none.
    Operand operands[4];
    int64_t stride[2], pad[2], dilation[2];
    int64_t threads;
    int64_t fast;
    int64_t groups, silu;  // of a norm
    int64_t quick;         // of GELU
    float scale;
};

struct Operands {
    ggml_context* ctx;
    ggml_backend_t backend;
    ggml_tensor *a, *b, *c, *d;
};

ggml_tensor* make(ggml_context* ctx, const Operand& operand) {
    const auto type = static_cast<ggml_type>(operand.type);
    int64_t ne[4];
    std::memcpy(ne, operand.ne, sizeof(ne));
    if (operand.permuted != 0) {
        std::swap(ne[1], ne[2]);
    }
    const int64_t width = ne[0] + operand.padding * ggml_blck_size(type);
    ggml_tensor* tensor = ggml_new_tensor_4d(ctx, type, width, ne[1], ne[2], ne[3]);
    tensor = ggml_view_4d(ctx, tensor, ne[0], ne[1], ne[2], ne[3], tensor->nb[1], tensor->nb[2], tensor->nb[3], 0);
    return operand.permuted != 0 ? ggml_permute(ctx, tensor, 0, 2, 1, 3) : tensor;
}

ggml_tensor* make_convolution(const Operands& of, const Case& wanted) {
    const auto number = [](const int64_t (&pair)[2], int i) { return static_cast<int>(pair[i]); };
    return ggml_conv_2d_direct(of.ctx, of.a, of.b, number(wanted.stride, 0), number(wanted.stride, 1),
                               number(wanted.pad, 0), number(wanted.pad, 1), number(wanted.dilation, 0),
                               number(wanted.dilation, 1));
}

// As ours, or as the engine does without flash attention.
ggml_tensor* make_attention(const Operands& of, const Case& wanted) {
    if (wanted.fast != 0) {
        ggml_tensor* const out = ggml_flash_attn_ext(of.ctx, of.b, of.a, of.c, nullptr, wanted.scale, 0.0f, 0.0f);
        out->src[3] = of.d;
        return out;
    }
    ggml_tensor* scores = ggml_scale(of.ctx, ggml_mul_mat(of.ctx, of.a, of.b), wanted.scale);
    scores = ggml_soft_max(of.ctx, of.d != nullptr ? ggml_add(of.ctx, scores, of.d) : scores);
    ggml_tensor* const values = ggml_cont(of.ctx, ggml_transpose(of.ctx, of.c));
    return ggml_cont(of.ctx, ggml_permute(of.ctx, ggml_mul_mat(of.ctx, values, scores), 0, 2, 1, 3));
}

// Before a convolution, which is not computed.
ggml_tensor* make_norm(const Operands& of, const Case& wanted) {
    ggml_tensor* out = ggml_group_norm(of.ctx, of.a, static_cast<int>(wanted.groups), 1e-6f);
    if (of.b != nullptr) {
        out = ggml_add_inplace(of.ctx, ggml_mul_inplace(of.ctx, out, of.b), of.c);
    }
    out = wanted.silu != 0 ? ggml_silu_inplace(of.ctx, out) : out;
    ggml_tensor* const filters = ggml_new_tensor_4d(of.ctx, GGML_TYPE_F32, 1, 1, out->ne[2], 1);
    return sdcpp::convolution(ggml_conv_2d_direct(of.ctx, filters, out, 1, 1, 0, 0, 1, 1))->src[1];
}

// Before attention, which is not computed.
ggml_tensor* make_rotation(const Operands& of, const Case& wanted) {
    ggml_tensor* const turned = Rope::apply_rope(of.ctx, of.a, of.b);
    if (wanted.fast == 0) {
        return turned;
    }
    ggml_tensor* const node = attention(of.ctx, of.backend, turned, turned, of.a, nullptr, 1.0f, 1.0f)->src[0];
    GGML_ASSERT(node->op == GGML_OP_ROPE);
    return node;
}

ggml_tensor* make_node(const Operands& of, const Case& wanted) {
    switch (wanted.kind) {
        case Kind::product:
            return ggml_mul_mat(of.ctx, of.a, of.b);
        case Kind::convolution:
            return make_convolution(of, wanted);
        case Kind::attention:
            return make_attention(of, wanted);
        case Kind::gelu:
            return wanted.quick != 0 ? ggml_gelu_quick(of.ctx, of.a) : ggml_gelu(of.ctx, of.a);
        case Kind::rotation:
            return make_rotation(of, wanted);
        default:
            return make_norm(of, wanted);
    }
}

// Writes values row by row, and reads back what the type keeps of them.
void fill(ggml_tensor* tensor, float* values) {
    const int64_t width = tensor->ne[0];
    std::vector<char> bytes(ggml_row_size(tensor->type, width));
    for (int64_t row = 0; row < ggml_nrows(tensor); ++row, values += width) {
        const int64_t i1 = row % tensor->ne[1];
        const int64_t i2 = row / tensor->ne[1] % tensor->ne[2];
        const int64_t i3 = row / (tensor->ne[1] * tensor->ne[2]);
        ggml_quantize_chunk(tensor->type, values, bytes.data(), 0, 1, width, nullptr);
        std::memcpy(static_cast<char*>(tensor->data) + i1 * tensor->nb[1] + i2 * tensor->nb[2] + i3 * tensor->nb[3],
                    bytes.data(), bytes.size());
        if (tensor->type != GGML_TYPE_F32) {
            ggml_get_type_traits(tensor->type)->to_float(bytes.data(), values, width);
        }
    }
}

}  // namespace

extern "C" {

// Computes a case; the values become those that the operands' types keep.
SD_API sdcpp_status_t sdcpp_probe_kernel(sdcpp_run_t* run, const Case* wanted, float* const* values, float* result) {
    return run_guarded(*run, [&] {
        backends_load();
        ggml_backend_ptr backend(ggml_backend_cpu_init());
        ggml_backend_cpu_set_n_threads(backend.get(), static_cast<int>(wanted->threads));
        ggml_context_ptr ctx(ggml_init({32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
        const KernelScope kernels(wanted->fast != 0);
        kernels_at(backend.get());
        ggml_tensor* made[4] = {};
        for (int i = 0; i < 4; ++i) {
            made[i] = wanted->operands[i].type >= 0 ? make(ctx.get(), wanted->operands[i]) : nullptr;
        }
        ggml_tensor* const out = make_node({ctx.get(), backend.get(), made[0], made[1], made[2], made[3]}, *wanted);
        ggml_cgraph* const graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, out);
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
        // Whatever is not computed or not read as it should be shows.
        ggml_backend_buffer_clear(buffer.get(), 0xff);
        for (int i = 0; i < 4; ++i) {
            if (made[i] != nullptr) {
                fill(made[i], values[i]);
            }
        }
        Placement placement;
        if (graph_compute(placement, backend.get(), graph) != GGML_STATUS_SUCCESS) {
            return false;
        }
        ggml_backend_tensor_get(out, result, 0, ggml_nbytes(out));
        return true;
    });
}

}  // extern "C"
