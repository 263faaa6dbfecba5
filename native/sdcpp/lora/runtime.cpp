#include "sdcpp/lora/runtime.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace {

using namespace sdcpp;

// Nodes that a change adds to a graph at most.
constexpr size_t nodes_of_change = 48;

using Params = WeightAdapter::ForwardParams;

// Returns a layer's output.
ggml_tensor* layer(ggml_context* ctx, ggml_tensor* x, ggml_tensor* w, ggml_tensor* b, const Params& params) {
    if (params.op_type == Params::op_type_t::OP_LINEAR) {
        return ggml_ext_linear(ctx, x, w, b, params.linear.force_prec_f32, params.linear.scale);
    }
    const auto& conv = params.conv2d;
    return ggml_ext_conv_2d(ctx, x, w, b, conv.s0, conv.s1, conv.p0, conv.p1, conv.d0, conv.d1, conv.direct,
                            conv.circular_x, conv.circular_y, conv.scale);
}

// Returns the product of an input and a kernel of one point.
ggml_tensor* at_points(ggml_context* ctx, ggml_tensor* x, ggml_tensor* w, const Params& params) {
    const auto& conv = params.conv2d;
    return ggml_ext_conv_2d(ctx, x, w, nullptr, 1, 1, 0, 0, 1, 1, conv.direct, false, false, conv.scale);
}

ggml_tensor* multiply(ggml_context* ctx, ggml_tensor* x, ggml_tensor* w, const Params& params) {
    return layer(ctx, x, w, nullptr, params);
}

// Returns values as a kernel of the given size; kernels are f16, as those of the engine's convolutions are.
ggml_tensor* kernel_of(ggml_context* ctx, ggml_tensor* values, int64_t width, int64_t height, int64_t inputs) {
    const int64_t outputs = ggml_nelements(values) / (width * height * inputs);
    values = ggml_reshape_4d(ctx, values, width, height, inputs, outputs);
    return values->type == GGML_TYPE_F16 ? values : ggml_cast(ctx, values, GGML_TYPE_F16);
}

// Returns a change's product with a convolution's input, before its scale.
ggml_tensor* convolved(ggml_context* ctx, const Attached& change, ggml_tensor* x, const ggml_tensor* w,
                       const Params& params) {
    const Factors& factors = change.factors;
    if (change.form.kind != Kind::low_rank) {
        ggml_tensor* whole = change_graph(ctx, factors, change.form.kind);
        return multiply(ctx, x, kernel_of(ctx, whole, w->ne[0], w->ne[1], w->ne[2]), params);
    }
    const Factor& down = factors.at(Role::down);
    const Factor& up = factors.at(Role::up);
    const auto core = factors.find(Role::mid);
    if (core != factors.end()) {
        x = at_points(ctx, x, kernel_of(ctx, down.tensor, 1, 1, down.rest()), params);
        x = multiply(ctx, x, kernel_of(ctx, core->second.tensor, w->ne[0], w->ne[1], down.first()), params);
    } else {
        x = multiply(ctx, x, kernel_of(ctx, down.tensor, w->ne[0], w->ne[1], w->ne[2]), params);
    }
    return at_points(ctx, x, kernel_of(ctx, up.tensor, 1, 1, up.rest()), params);
}

// Returns a change's product with a layer's input, before DoRA and the user's strength.
ggml_tensor* product(ggml_context* ctx, const Attached& change, ggml_tensor* x, const ggml_tensor* w,
                     const Params& params) {
    ggml_tensor* y = nullptr;
    if (params.op_type == Params::op_type_t::OP_LINEAR) {
        y = change_product(ctx, change.factors, change.form.kind, x, [&](ggml_tensor* input, ggml_tensor* matrix) {
            return multiply(ctx, input, matrix, params);
        });
    } else {
        y = convolved(ctx, change, x, w, params);
    }
    return change.form.scale == 1.0f ? y : ggml_scale(ctx, y, change.form.scale);
}

// Returns some of the rows of a linear layer's output.
ggml_tensor* rows_of_output(ggml_context* ctx, ggml_tensor* out, int64_t first, int64_t count) {
    if (count == out->ne[0]) {
        return out;
    }
    ggml_tensor* view = ggml_view_4d(ctx, out, count, out->ne[1], out->ne[2], out->ne[3], out->nb[1], out->nb[2],
                                     out->nb[3], static_cast<size_t>(first) * out->nb[0]);
    return ggml_cont(ctx, view);
}

// Returns what a change adds to a layer's output; plain is the output of the weight alone, without its bias.
ggml_tensor* added_output(ggml_context* ctx, const Attached& change, ggml_tensor* x, ggml_tensor* w, ggml_tensor* plain,
                          const Params& params) {
    const bool flat = params.op_type == Params::op_type_t::OP_LINEAR;
    ggml_tensor* y = nullptr;
    // DoRA replaces the weight's own part of the output as well.
    if (change.by_channel != nullptr) {
        ggml_tensor* factors = flat ? change.by_channel : ggml_reshape_4d(ctx, change.by_channel, 1, 1, x->ne[2], 1);
        ggml_tensor* scaled = ggml_mul(ctx, x, factors);
        ggml_tensor* own = multiply(ctx, scaled, w, params);
        own = flat ? rows_of_output(ctx, own, change.row, change.form.rows) : own;
        y = ggml_add(ctx, product(ctx, change, scaled, w, params), own);
    } else {
        y = product(ctx, change, x, w, params);
    }
    if (change.by_row != nullptr || change.by_channel != nullptr) {
        ggml_tensor* own = flat ? rows_of_output(ctx, plain, change.row, change.form.rows) : plain;
        if (change.by_row != nullptr) {
            ggml_tensor* factors = flat ? change.by_row : ggml_reshape_4d(ctx, change.by_row, 1, 1, own->ne[2], 1);
            y = ggml_mul(ctx, ggml_add(ctx, y, own), factors);
        }
        y = ggml_sub(ctx, y, own);
    }
    return change.strength == 1.0f ? y : ggml_scale(ctx, y, change.strength);
}

// Returns an output with a change added to some of its rows.
ggml_tensor* add_rows(ggml_context* ctx, ggml_tensor* out, ggml_tensor* y, int64_t first) {
    if (y->ne[0] == out->ne[0]) {
        return ggml_add(ctx, out, y);
    }
    return ggml_acc(ctx, out, y, out->nb[1], out->nb[2], out->nb[3], static_cast<size_t>(first) * out->nb[0]);
}

bool decomposes(const std::vector<Attached>& changes) {
    return std::any_of(changes.begin(), changes.end(),
                       [](const Attached& change) { return change.by_row != nullptr || change.by_channel != nullptr; });
}

// Tells whether graphs read a factor; the others are in the change's scale, its norms or the bias.
bool in_graph(Role role) {
    switch (role) {
        case Role::alpha:
        case Role::scale:
        case Role::dora:
        case Role::magnitude:
        case Role::up_bias:
        case Role::diff_bias:
            return false;
        default:
            return true;
    }
}

}  // namespace

namespace sdcpp {

bool applies_at_runtime(const Change& change) {
    const std::string& name = change.target.weight;
    if (change.of_bias || !ends_with(name, ".weight")) {
        return false;
    }
    for (const char* looked_up : {"token_embedding.weight", "position_embedding.weight", "embed_tokens.weight",
                                  "shared.weight", "relative_attention_bias.weight"}) {
        if (ends_with(name, looked_up)) {
            return false;
        }
    }
    const int dims = ggml_n_dims(change.tensor);
    return dims == 2 || (dims == 4 && change.form.kind != Kind::difference);
}

// The tensors of the changes: a runner's weights, so that they are placed and counted as such.
struct RuntimeLoras::Weights : public GGMLRunner {
    explicit Weights(ggml_backend_t backend) : GGMLRunner(backend, false) {}

    std::string get_desc() override { return "lora"; }

    ggml_tensor* add(ggml_type type, int dims, const int64_t* ne) {
        return ggml_new_tensor(params_ctx, type, dims, ne);
    }
};

RuntimeLoras::RuntimeLoras(ggml_backend_t backend, const char* module, const std::vector<const Change*>& changes,
                           const std::vector<Norms>& norms, const std::function<bool(const ggml_tensor*)>& is_half)
    : weights(std::make_unique<Weights>(backend)) {
    const LoraScope scope(module);  // where they are placed
    // What goes to a device: from where, and the tensor there.
    std::vector<std::pair<const float*, ggml_tensor*>> copies;
    std::map<const ggml_tensor*, ggml_tensor*> placed;
    const auto vector_of = [&](const std::vector<float>& values) {
        if (values.empty()) {
            return static_cast<ggml_tensor*>(nullptr);
        }
        const auto count = static_cast<int64_t>(values.size());
        copies.emplace_back(values.data(), weights->add(GGML_TYPE_F32, 1, &count));
        return copies.back().second;
    };
    for (size_t i = 0; i < changes.size(); ++i) {
        const Change& change = *changes[i];
        Attached made{{}, change.form, change.strength, change.row, change.target.on_output, nullptr, nullptr};
        for (const auto& [role, factor] : change.factors) {
            if (!in_graph(role)) {
                continue;
            }
            ggml_tensor*& tensor = placed[factor.tensor];
            if (tensor == nullptr) {
                const ggml_type type = is_half(factor.tensor) ? GGML_TYPE_F16 : GGML_TYPE_F32;
                tensor = weights->add(type, factor.dims, factor.tensor->ne);
                copies.emplace_back(static_cast<const float*>(factor.tensor->data), tensor);
            }
            made.factors[role] = {tensor, factor.dims};
        }
        made.by_row = vector_of(norms[i].by_row);
        made.by_channel = vector_of(norms[i].by_channel);
        attached[change.target.weight].push_back(std::move(made));
    }
    if (!weights->alloc_params_buffer()) {
        throw std::runtime_error(std::string("LoRA: no memory for the tensors of module ") + module);
    }
    std::vector<ggml_fp16_t> halves;
    for (const auto& [values, tensor] : copies) {
        const void* data = values;
        if (tensor->type == GGML_TYPE_F16) {
            halves.resize(static_cast<size_t>(ggml_nelements(tensor)));
            ggml_fp32_to_fp16_row(values, halves.data(), ggml_nelements(tensor));
            data = halves.data();
        }
        weights_set(tensor, data, 0, ggml_nbytes(tensor));
    }
}

RuntimeLoras::~RuntimeLoras() {
    weights->free_params_buffer();
}

ggml_tensor* RuntimeLoras::patch_weight(ggml_context*, ggml_backend_t, ggml_tensor* weight, const std::string&) {
    return weight;  // what is no weight of a linear layer or convolution is merged
}

ggml_tensor* RuntimeLoras::forward_with_lora(ggml_context* ctx, ggml_backend_t, ggml_tensor* x, ggml_tensor* w,
                                             ggml_tensor* b, const std::string& prefix, ForwardParams params) {
    const bool flat = params.op_type == ForwardParams::op_type_t::OP_LINEAR;
    const auto found = attached.find(prefix + "weight");
    if (found == attached.end()) {
        return layer(ctx, x, w, b, params);
    }
    // The engine adds the bias in place, but DoRA asks for the output without it.
    ggml_tensor* plain = nullptr;
    ggml_tensor* out = nullptr;
    if (decomposes(found->second)) {
        plain = multiply(ctx, x, w, params);
        out = b == nullptr ? plain : ggml_add(ctx, plain, flat ? b : ggml_reshape_4d(ctx, b, 1, 1, b->ne[0], 1));
    } else {
        out = layer(ctx, x, w, b, params);
    }
    ggml_tensor* own = out;
    for (const Attached& change : found->second) {
        ggml_tensor* input = change.on_output ? own : x;
        out = add_rows(ctx, out, added_output(ctx, change, input, w, plain, params), change.row);
    }
    return out;
}

size_t RuntimeLoras::get_extra_graph_size() {
    size_t changes = 0;
    for (const auto& entry : attached) {
        changes += entry.second.size();
    }
    return changes * nodes_of_change;
}

}  // namespace sdcpp
