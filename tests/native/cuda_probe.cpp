// Computes parts of networks on a device under either kernel policy, with inputs that follow from a seed. Part of the
// engine library in test builds only.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-cpp.h"
#include "ggml_extend.hpp"
#include "ggml_extend_backend.hpp"
#include "rope.hpp"
#include "sdcpp/api/run.h"
#include "sdcpp/kernels/graph.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"

namespace {

using namespace sdcpp;

enum class Kind : int64_t { convolution, block, attention_in, feed_forward, rotation, attention, attending };

struct Case {
    Kind kind;
    int64_t width, height, channels, filters, batch;  // or tokens, heads, depth
    int64_t taps, stride, pad, dilation;
    int64_t type;  // of the weights
    int64_t fast;
    float scale;  // of the inputs of convolutions; of keys and values
};

// A graph, and the inputs that it is made of.
class Scene {
public:
    Scene(const Case& given, ggml_backend_t on)
        : wanted(given),
          backend(on),
          inputs(ggml_init({64 * ggml_tensor_overhead(), nullptr, true})),
          ctx(ggml_init({512 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true})) {}

    ggml_tensor* input(int64_t ne0, int64_t ne1 = 1, int64_t ne2 = 1, int64_t ne3 = 1, ggml_type type = GGML_TYPE_F32) {
        return ggml_new_tensor_4d(inputs.get(), type, ne0, ne1, ne2, ne3);
    }

    ggml_tensor* weights(int64_t ne0, int64_t ne1, int64_t ne2 = 1, int64_t ne3 = 1) {
        return input(ne0, ne1, ne2, ne3, static_cast<ggml_type>(wanted.type));
    }

    ggml_tensor* convolved(ggml_tensor* x, int64_t filters, int64_t taps, bool plain = false) {
        const auto of = [&](int64_t value, int64_t normal) { return static_cast<int>(plain ? normal : value); };
        ggml_tensor* const w = weights(taps, taps, x->ne[2], filters);
        return ggml_ext_conv_2d(ctx.get(), x, w, input(filters), of(wanted.stride, 1), of(wanted.stride, 1),
                                of(wanted.pad, taps / 2), of(wanted.pad, taps / 2), of(wanted.dilation, 1),
                                of(wanted.dilation, 1), kernels_at(backend), false, false, wanted.scale);
    }

    ggml_tensor* normed(ggml_tensor* x) {
        x = ggml_ext_group_norm(ctx.get(), x, input(x->ne[2]), input(x->ne[2]), x->ne[2] % 32 == 0 ? 32 : 1);
        return ggml_silu_inplace(ctx.get(), x);
    }

    ggml_tensor* linear(ggml_tensor* x, int64_t out, bool bias) {
        return ggml_ext_linear(ctx.get(), x, weights(x->ne[0], out), bias ? input(out) : nullptr);
    }

    ggml_tensor* make() {
        ggml_context* const c = ctx.get();
        const int64_t width = wanted.width;
        const int64_t height = wanted.height;
        const int64_t channels = wanted.channels;
        switch (wanted.kind) {
            case Kind::convolution: {
                ggml_tensor* const x =
                    convolved(input(width, height, channels, wanted.batch), wanted.filters, wanted.taps);
                // As a residual block adds its time step and what went round it.
                ggml_tensor* const y = ggml_add(c, x, input(1, 1, wanted.filters, wanted.batch));
                return ggml_add(c, y, input(x->ne[0], x->ne[1], x->ne[2], x->ne[3]));
            }
            case Kind::block: {
                ggml_tensor* const x = ggml_scale(c, input(width, height, channels, wanted.batch), 3.0f);
                ggml_tensor* h = convolved(normed(x), wanted.filters, 3, true);
                if (wanted.filters == channels) {  // an autoencoder's has no time step
                    h = ggml_add(c, h, input(1, 1, wanted.filters, wanted.batch));
                }
                h = convolved(normed(h), wanted.filters, 3, true);
                h = residual(c, h, wanted.filters == channels ? x : convolved(x, wanted.filters, 1, true));
                return convolved(ggml_upscale(c, normed(h), 2, GGML_SCALE_MODE_NEAREST), 8, 3, true);
            }
            case Kind::attention_in: {
                ggml_tensor* const x = input(channels, width, wanted.batch);
                ggml_tensor* h = ggml_mul_inplace(c, ggml_rms_norm(c, x, 1e-5f), input(channels));
                h = ggml_add(c, h, ggml_mul(c, h, input(channels, 1, wanted.batch)));
                ggml_tensor* const q = linear(h, wanted.filters, false);
                ggml_tensor* const k = linear(h, wanted.filters, true);
                h = linear(ggml_mul(c, ggml_gelu(c, k), q), channels, true);
                h = ggml_mul(c, h, ggml_tanh(c, input(channels, 1, wanted.batch)));
                return ggml_add(c, h, x);
            }
            case Kind::feed_forward: {
                ggml_tensor* const x = input(channels, width, wanted.batch);
                ggml_tensor* h = ggml_ext_layer_norm(c, x, input(channels), input(channels));
                h = linear(h, wanted.filters * 2, true);
                const auto parts = ggml_ext_chunk(c, h, 2, 0, false);
                ggml_tensor* const gate = ggml_ext_gelu(c, ggml_cont(c, parts[1]), true);
                h = ggml_add(c, linear(ggml_mul(c, parts[0], gate), channels, true), x);
                return ggml_swiglu_split(c, linear(h, channels, false), linear(h, channels, false));
            }
            case Kind::rotation: {
                // Queries and keys of a product for both: depth = channels, heads = filters, tokens = width.
                ggml_tensor* const all = input(channels, wanted.filters * 2, width, wanted.batch);
                ggml_tensor* const angles = input(2, 2, channels / 2, width);
                const auto part = [&](int64_t which) {
                    ggml_tensor* heads = ggml_view_4d(c, all, channels, wanted.filters, width, wanted.batch, all->nb[1],
                                                      all->nb[2], all->nb[3], which * wanted.filters * all->nb[1]);
                    if (which == 0) {
                        heads = ggml_mul_inplace(c, ggml_rms_norm(c, heads, 1e-6f), input(channels));
                    }
                    return Rope::apply_rope(c, heads, angles);
                };
                ggml_tensor* const q = part(0);
                ggml_tensor* const k = ggml_cast(c, ggml_scale(c, part(1), wanted.scale), GGML_TYPE_F16);
                return ggml_add(c, q, ggml_cast(c, k, GGML_TYPE_F32));
            }
            case Kind::attention: {
                ggml_tensor* const q = input(channels * wanted.filters, width, wanted.batch);
                ggml_tensor* const k = input(channels * wanted.filters, height, wanted.batch);
                ggml_tensor* const v = input(channels * wanted.filters, height, wanted.batch);
                return ggml_ext_attention_ext(c, backend, q, k, v, wanted.filters, nullptr, false, false, wanted.scale);
            }
            case Kind::attending: {
                // With the products around it: depth = channels, heads = filters, tokens = width, those of the context =
                // height.
                const int64_t all = channels * wanted.filters;
                ggml_tensor* const x = input(all, width, wanted.batch);
                ggml_tensor* const context = height != 0 ? input(96, height, wanted.batch) : nullptr;
                ggml_tensor* const h = ggml_ext_layer_norm(c, x, input(all), input(all));
                ggml_tensor* const from = context != nullptr ? context : h;
                ggml_tensor* const q = linear(h, all, false);
                ggml_tensor* const k = linear(from, all, false);
                ggml_tensor* const v = linear(from, all, false);
                ggml_tensor* const out = ggml_ext_attention_ext(c, backend, q, k, v, wanted.filters, nullptr, false, false,
                                                                wanted.scale);
                return ggml_add(c, linear(out, all, true), x);
            }
        }
        return nullptr;
    }

    // Fills the inputs with numbers as a network has them.
    void fill() {
        std::mt19937 random(1);
        std::vector<float> values;
        std::vector<char> bytes;
        for (ggml_tensor* tensor = ggml_get_first_tensor(inputs.get()); tensor != nullptr;
             tensor = ggml_get_next_tensor(inputs.get(), tensor)) {
            const bool weighs = tensor->type != GGML_TYPE_F32;
            const auto depth =
                static_cast<double>(ggml_nelements(tensor)) / static_cast<double>(tensor->ne[ggml_n_dims(tensor) - 1]);
            std::normal_distribution<float> normal(0.0f, weighs ? static_cast<float>(1.0 / std::sqrt(depth)) : 1.0f);
            values.resize(static_cast<size_t>(ggml_nelements(tensor)));
            for (float& value : values) {
                value = normal(random);
            }
            bytes.resize(ggml_nbytes(tensor));
            ggml_quantize_chunk(tensor->type, values.data(), bytes.data(), 0, ggml_nrows(tensor), tensor->ne[0],
                                nullptr);
            ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
        }
    }

    const Case& wanted;
    ggml_backend_t backend;
    ggml_context_ptr inputs;
    ggml_context_ptr ctx;
};

}  // namespace

extern "C" {

// Computes a case on a device; `times`: how often, of which the seconds of the fastest are returned. `result` has room
// for `count` values, the number of which becomes `count`.
SD_API sdcpp_status_t sdcpp_probe_part(sdcpp_run_t* run, const char* device, const Case* wanted, int64_t times,
                                       float* result, int64_t* count, double* seconds) {
    return run_guarded(*run, [&] {
        backends_load();
        const ggml_backend_dev_t found = ggml_backend_dev_by_name(device);
        if (found == nullptr) {
            return false;
        }
        ggml_backend_ptr backend(ggml_backend_dev_init(found, nullptr));
        const KernelScope kernels(wanted->fast != 0);
        Scene scene(*wanted, backend.get());
        ggml_tensor* const out = scene.make();
        ggml_set_output(out);
        ggml_cgraph* const graph = ggml_new_graph(scene.ctx.get());
        ggml_build_forward_expand(graph, out);
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(scene.inputs.get(), backend.get()));
        // Memory is used again while the graph is computed, as it is by a model.
        ggml_gallocr_ptr allocator(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend.get())));
        if (buffer == nullptr || !ggml_gallocr_alloc_graph(allocator.get(), graph)) {
            return false;
        }
        scene.fill();
        Placement placement;
        *seconds = INFINITY;
        for (int64_t i = 0; i < times; ++i) {
            ggml_backend_synchronize(backend.get());
            const int64_t start = ggml_time_us();
            if (graph_compute(placement, backend.get(), graph) != GGML_STATUS_SUCCESS) {
                return false;
            }
            ggml_backend_synchronize(backend.get());
            *seconds = std::min(*seconds, static_cast<double>(ggml_time_us() - start) / 1e6);
        }
        if (ggml_nelements(out) > *count) {
            return false;
        }
        *count = ggml_nelements(out);
        ggml_backend_tensor_get(out, result, 0, ggml_nbytes(out));
        return true;
    });
}

}  // extern "C"
