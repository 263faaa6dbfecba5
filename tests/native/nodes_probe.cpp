// Computes single operations on the CPU backend, whole and in pieces, and counts how often each asks whether its graph is
// still wanted. Part of the engine library in test builds only.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "ggml-cpp.h"
#include "ggml_extend_backend.hpp"
#include "sdcpp/api/run.h"
#include "sdcpp/kernels/policy.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/threads/team.h"

extern "C" {
GGML_API void sdcpp_piece_bytes_set(size_t bytes);
}

namespace {

using namespace sdcpp;

struct Maker {
    ggml_context* ctx;
    int64_t n;  // grows with the operation's size

    ggml_tensor* make(ggml_type type, int64_t a, int64_t b = 1, int64_t c = 1, int64_t d = 1) const {
        return ggml_new_tensor_4d(ctx, type, a, b, c, d);
    }
    ggml_tensor* f32(int64_t a, int64_t b = 1, int64_t c = 1, int64_t d = 1) const {
        return make(GGML_TYPE_F32, a, b, c, d);
    }
    // What most operations take: 64 n rows of 64 values.
    ggml_tensor* rows() const { return f32(64, 32, n, 2); }
    ggml_tensor* attention(ggml_type type, int64_t queries, bool mask) const {
        return ggml_flash_attn_ext(ctx, f32(64, queries, 2), make(type, 64, 16 * n, 2), make(type, 64, 16 * n, 2),
                                   mask ? make(GGML_TYPE_F16, 16 * n, queries) : nullptr, 0.125f, 0.0f, 0.0f);
    }
    ggml_tensor* product(ggml_type type) const { return ggml_mul_mat(ctx, make(type, 1024, 1024), f32(1024, 2 * n)); }
    ggml_tensor* few(ggml_type type) const { return ggml_mul_mat(ctx, make(type, 256, 256 * n), f32(256, 3)); }
    ggml_tensor* kernel(ggml_type type) const { return make(type, 3, 3, 32, 32); }
    ggml_tensor* picture() const { return f32(64, n, 32); }
};

using Make = std::function<ggml_tensor*(const Maker&)>;

const std::map<std::string, Make>& operations() {
    static const std::map<std::string, Make> all = {
        {"add", [](const Maker& m) { return ggml_add(m.ctx, m.rows(), m.rows()); }},
        {"add to f16", [](const Maker& m) { return ggml_add(m.ctx, m.make(GGML_TYPE_F16, 64, 32, m.n), m.f32(64)); }},
        {"add to q8_0", [](const Maker& m) { return ggml_add(m.ctx, m.make(GGML_TYPE_Q8_0, 64, 64, m.n), m.f32(64, 64, m.n)); }},
        {"add a number to each row", [](const Maker& m) { return ggml_add(m.ctx, m.rows(), m.f32(1, 1, m.n, 2)); }},
        {"add a row", [](const Maker& m) { return ggml_add(m.ctx, m.rows(), m.f32(64)); }},
        {"attention f16", [](const Maker& m) { return m.attention(GGML_TYPE_F16, 16 * m.n, false); }},
        {"attention f16 masked", [](const Maker& m) { return m.attention(GGML_TYPE_F16, 16 * m.n, true); }},
        {"attention f32", [](const Maker& m) { return m.attention(GGML_TYPE_F32, 16 * m.n, false); }},
        {"attention of few", [](const Maker& m) { return m.attention(GGML_TYPE_F16, 24, false); }},
        {"attention q8_0", [](const Maker& m) { return m.attention(GGML_TYPE_Q8_0, 16 * m.n, false); }},
        {"clamp", [](const Maker& m) { return ggml_clamp(m.ctx, m.rows(), -0.5f, 0.5f); }},
        {"concat 0", [](const Maker& m) { return ggml_concat(m.ctx, m.rows(), m.rows(), 0); }},
        {"concat 1", [](const Maker& m) { return ggml_concat(m.ctx, m.rows(), m.rows(), 1); }},
        {"concat 2", [](const Maker& m) { return ggml_concat(m.ctx, m.rows(), m.rows(), 2); }},
        {"concat 3", [](const Maker& m) { return ggml_concat(m.ctx, m.rows(), m.rows(), 3); }},
        {"cont", [](const Maker& m) { return ggml_cont(m.ctx, ggml_permute(m.ctx, m.rows(), 2, 0, 1, 3)); }},
        {"cont f16", [](const Maker& m) { return ggml_cont(m.ctx, ggml_permute(m.ctx, m.make(GGML_TYPE_F16, 64, 64, m.n), 1, 0, 2, 3)); }},
        {"conv 2d", [](const Maker& m) { return ggml_conv_2d(m.ctx, m.kernel(GGML_TYPE_F16), m.picture(), 1, 1, 1, 1, 1, 1); }},
        {"conv 2d direct", [](const Maker& m) { return ggml_conv_2d_direct(m.ctx, m.kernel(GGML_TYPE_F16), m.picture(), 1, 1, 1, 1, 1, 1); }},
        {"conv 2d f32", [](const Maker& m) { return ggml_conv_2d(m.ctx, m.kernel(GGML_TYPE_F32), m.picture(), 1, 1, 1, 1, 1, 1); }},
        {"conv 2d of channels", [](const Maker& m) { return ggml_conv_2d_dw_direct(m.ctx, m.f32(3, 3, 1, 64), m.f32(64, m.n, 64), 1, 1, 1, 1, 1, 1); }},
        {"conv 3d", [](const Maker& m) { return ggml_conv_3d(m.ctx, m.make(GGML_TYPE_F16, 3, 3, 3, 8 * 8), m.f32(32, m.n, 4, 8), 8, 1, 1, 1, 1, 1, 1, 1, 1, 1); }},
        {"cos", [](const Maker& m) { return ggml_cos(m.ctx, m.rows()); }},
        {"cpy f16", [](const Maker& m) { return ggml_cpy(m.ctx, m.rows(), m.make(GGML_TYPE_F16, 64, 32, m.n, 2)); }},
        {"cpy from q8_0", [](const Maker& m) { return ggml_cpy(m.ctx, m.make(GGML_TYPE_Q8_0, 64, 64, m.n), m.f32(64, 64, m.n)); }},
        {"cpy q8_0", [](const Maker& m) { return ggml_cpy(m.ctx, m.rows(), m.make(GGML_TYPE_Q8_0, 64, 32, m.n, 2)); }},
        {"div", [](const Maker& m) { return ggml_div(m.ctx, m.rows(), m.rows()); }},
        {"dup", [](const Maker& m) { return ggml_dup(m.ctx, m.rows()); }},
        {"exp", [](const Maker& m) { return ggml_exp(m.ctx, m.rows()); }},
        {"gate gelu", [](const Maker& m) { return ggml_geglu(m.ctx, m.rows()); }},
        {"gate silu", [](const Maker& m) { return ggml_swiglu_split(m.ctx, m.rows(), m.rows()); }},
        {"gelu", [](const Maker& m) { return ggml_gelu(m.ctx, m.rows()); }},
        {"gelu erf", [](const Maker& m) { return ggml_gelu_erf(m.ctx, m.rows()); }},
        {"gelu quick", [](const Maker& m) { return ggml_gelu_quick(m.ctx, m.rows()); }},
        {"get rows", [](const Maker& m) { return ggml_get_rows(m.ctx, m.f32(64, 128), m.make(GGML_TYPE_I32, 64 * m.n)); }},
        {"get rows q8_0", [](const Maker& m) { return ggml_get_rows(m.ctx, m.make(GGML_TYPE_Q8_0, 64, 128), m.make(GGML_TYPE_I32, 64 * m.n)); }},
        {"group norm", [](const Maker& m) { return ggml_group_norm(m.ctx, m.f32(32, m.n, 128), 32, 1e-6f); }},
        {"l2 norm", [](const Maker& m) { return ggml_l2_norm(m.ctx, m.rows(), 1e-6f); }},
        {"mul", [](const Maker& m) { return ggml_mul(m.ctx, m.rows(), m.rows()); }},
        {"norm", [](const Maker& m) { return ggml_norm(m.ctx, m.rows(), 1e-6f); }},
        {"mul rows by a number each", [](const Maker& m) { return ggml_mul(m.ctx, m.rows(), m.f32(1, 32, m.n, 1)); }},
        {"pad", [](const Maker& m) { return ggml_pad(m.ctx, m.rows(), 1, 1, 0, 0); }},
        {"product bf16", [](const Maker& m) { return m.product(GGML_TYPE_BF16); }},
        {"product f16", [](const Maker& m) { return m.product(GGML_TYPE_F16); }},
        {"product f32", [](const Maker& m) { return m.product(GGML_TYPE_F32); }},
        {"product of few columns", [](const Maker& m) { return m.few(GGML_TYPE_F16); }},
        {"product of few columns f32", [](const Maker& m) { return m.few(GGML_TYPE_F32); }},
        {"product of few columns q4_K", [](const Maker& m) { return m.few(GGML_TYPE_Q4_K); }},
        {"product q4_0", [](const Maker& m) { return m.product(GGML_TYPE_Q4_0); }},
        {"product q8_0", [](const Maker& m) { return m.product(GGML_TYPE_Q8_0); }},
        {"rms norm", [](const Maker& m) { return ggml_rms_norm(m.ctx, m.rows(), 1e-6f); }},
        {"scale", [](const Maker& m) { return ggml_scale(m.ctx, m.rows(), 0.5f); }},
        {"sigmoid", [](const Maker& m) { return ggml_sigmoid(m.ctx, m.rows()); }},
        {"silu", [](const Maker& m) { return ggml_silu(m.ctx, m.rows()); }},
        {"sin", [](const Maker& m) { return ggml_sin(m.ctx, m.rows()); }},
        {"softmax", [](const Maker& m) { return ggml_soft_max(m.ctx, m.rows()); }},
        {"softmax masked", [](const Maker& m) { return ggml_soft_max_ext(m.ctx, m.f32(64, 32, m.n), m.make(GGML_TYPE_F16, 64, 32), 0.5f, 0.0f); }},
        {"softmax of one row", [](const Maker& m) { return ggml_soft_max(m.ctx, m.f32(4096 * m.n)); }},
        {"sqr", [](const Maker& m) { return ggml_sqr(m.ctx, m.rows()); }},
        {"sub", [](const Maker& m) { return ggml_sub(m.ctx, m.rows(), m.rows()); }},
        {"tanh", [](const Maker& m) { return ggml_tanh(m.ctx, m.rows()); }},
        {"upscale", [](const Maker& m) { return ggml_upscale(m.ctx, m.f32(8, m.n, 64), 2, GGML_SCALE_MODE_NEAREST); }},
        {"upscale bilinear", [](const Maker& m) { return ggml_upscale(m.ctx, m.f32(8, m.n, 64), 2, GGML_SCALE_MODE_BILINEAR); }},
    };
    return all;
}

// Fills a tensor with values between -1 and 1, or with indices below 128, that depend on its place alone.
void fill(ggml_tensor* tensor, uint32_t seed) {
    const auto count = static_cast<size_t>(ggml_nelements(tensor));
    std::vector<float> values(count);
    std::vector<int32_t> indices(count);
    for (size_t i = 0; i < count; ++i) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
        indices[i] = static_cast<int32_t>(seed >> 25);
    }
    if (tensor->type == GGML_TYPE_I32) {
        ggml_backend_tensor_set(tensor, indices.data(), 0, ggml_nbytes(tensor));
        return;
    }
    std::vector<char> bytes(ggml_nbytes(tensor));
    const int64_t width = tensor->ne[0];
    ggml_quantize_chunk(tensor->type, values.data(), bytes.data(), 0, ggml_nrows(tensor), width, nullptr);
    ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
}

std::atomic<uint64_t> questions{0};
std::atomic<sdcpp_team_unwanted_t> was_asked{nullptr};

bool count_question(void* work) {
    ++questions;
    const sdcpp_team_unwanted_t asked = was_asked;
    return asked != nullptr && asked(work);
}

uint64_t digest(const ggml_tensor* tensor) {
    std::vector<unsigned char> bytes(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
    uint64_t hash = 14695981039346656037u;
    for (const unsigned char byte : bytes) {
        hash = (hash ^ byte) * 1099511628211u;
    }
    return hash;
}

}  // namespace

extern "C" {

struct sdcpp_probe_node {
    uint64_t digest;     // of the result
    uint64_t questions;  // whether the graph is still wanted
    double seconds;      // computing took
};

// Returns the name of an operation; NULL: there are no more.
SD_API const char* sdcpp_probe_node_name(int index) {
    for (const auto& [name, make] : operations()) {
        if (index-- == 0) {
            return name.c_str();
        }
    }
    return nullptr;
}

// Computes an operation of a size in pieces of some bytes (0: as usual), with our kernels or without.
SD_API sdcpp_status_t sdcpp_probe_node(sdcpp_run_t* run, const char* name, int64_t size, int threads, size_t piece_bytes,
                                       bool fast, sdcpp_probe_node* found) {
    *found = {};
    return run_guarded(*run, [&] {
        const KernelScope kernels(fast);
        backends_load();
        ggml_backend_ptr backend(ggml_backend_cpu_init());
        ggml_backend_cpu_set_n_threads(backend.get(), threads);
        ggml_context_ptr ctx(ggml_init({32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
        ggml_tensor* const out = operations().at(name)({ctx.get(), size});
        ggml_cgraph* const graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, out);
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
        ggml_backend_buffer_clear(buffer.get(), 0);
        uint32_t seed = 1;
        for (ggml_tensor* t = ggml_get_first_tensor(ctx.get()); t != nullptr; t = ggml_get_next_tensor(ctx.get(), t)) {
            if (t->op == GGML_OP_NONE) {
                fill(t, seed++);
            }
        }
        sdcpp_piece_bytes_set(piece_bytes);
        questions = 0;
        was_asked = sdcpp_team_ask(count_question);
        Placement placement;
        const auto begin = std::chrono::steady_clock::now();
        const ggml_status status = graph_compute(placement, backend.get(), graph);
        found->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        sdcpp_team_ask(was_asked);
        sdcpp_piece_bytes_set(0);
        found->questions = questions;
        if (status == GGML_STATUS_SUCCESS) {
            found->digest = digest(out);
        }
        return status == GGML_STATUS_SUCCESS;
    });
}

// Asks of graphs of so many shapes, one after another and the first one in between, how they use their compute buffers;
// returns how many answers are kept, and fails when the first one's is not.
SD_API int sdcpp_probe_shapes(int shapes) {
    ggml_backend_ptr backend(ggml_backend_cpu_init());
    Placement placement;
    placement.runtime_backend = backend.get();
    const auto ask = [&](int64_t rows) {
        ggml_context_ptr ctx(ggml_init({8 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
        ggml_tensor* const in = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, rows);
        ggml_cgraph* const graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, ggml_silu(ctx.get(), ggml_add(ctx.get(), in, in)));
        return compute_use(placement, graph);
    };
    const auto first = ask(1);
    for (int i = 0; i < shapes; ++i) {
        ask(2 + i);
        if (ask(1) != first) {
            return -1;
        }
    }
    return static_cast<int>(placement.compute_uses.size());
}

}  // extern "C"
