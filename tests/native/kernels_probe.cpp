// Computes a product, a convolution or attention of given values on the CPU backend under either kernel policy. Part of
// the engine library in test builds only.
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "ggml-cpp.h"
#include "ggml_extend_backend.hpp"
#include "sdcpp/api/run.h"
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

enum class Kind : int64_t { product, convolution, attention };

struct Case {
    Kind kind;
    Operand left, right, third;  // of attention: keys, queries, values
    int64_t stride[2], pad[2], dilation[2];
    int64_t threads;
    int64_t fast;
    float scale;
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
SD_API sdcpp_status_t sdcpp_probe_kernel(sdcpp_run_t* run, const Case* wanted, float* left, float* right, float* third,
                                         float* result) {
    return run_guarded(*run, [&] {
        backends_load();
        ggml_backend_ptr backend(ggml_backend_cpu_init());
        ggml_backend_cpu_set_n_threads(backend.get(), static_cast<int>(wanted->threads));
        ggml_context_ptr ctx(ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
        ggml_tensor* const a = make(ctx.get(), wanted->left);
        ggml_tensor* const b = make(ctx.get(), wanted->right);
        ggml_tensor* const c = wanted->kind == Kind::attention ? make(ctx.get(), wanted->third) : nullptr;
        const auto of = [](const int64_t (&pair)[2], int i) { return static_cast<int>(pair[i]); };
        ggml_tensor* const out =
            wanted->kind == Kind::product ? ggml_mul_mat(ctx.get(), a, b)
            : wanted->kind == Kind::attention
                ? ggml_flash_attn_ext(ctx.get(), b, a, c, nullptr, wanted->scale, 0.0f, 0.0f)
                : ggml_conv_2d_direct(ctx.get(), a, b, of(wanted->stride, 0), of(wanted->stride, 1), of(wanted->pad, 0),
                                      of(wanted->pad, 1), of(wanted->dilation, 0), of(wanted->dilation, 1));
        ggml_cgraph* const graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, out);
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
        // Whatever is not computed or not read as it should be shows.
        ggml_backend_buffer_clear(buffer.get(), 0xff);
        fill(a, left);
        fill(b, right);
        if (c != nullptr) {
            fill(c, third);
        }
        Placement placement;
        const KernelScope kernels(wanted->fast != 0);
        if (graph_compute(placement, backend.get(), graph) != GGML_STATUS_SUCCESS) {
            return false;
        }
        ggml_backend_tensor_get(out, result, 0, ggml_nbytes(out));
        return true;
    });
}

}  // extern "C"
