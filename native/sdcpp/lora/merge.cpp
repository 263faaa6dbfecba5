#include "sdcpp/lora/merge.h"

#include <cfloat>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "ggml-alloc.h"
#include "ggml_extend_backend.hpp"
#include "sdcpp/lora/weight.h"

namespace {

using namespace sdcpp;

// A change's graph has a handful of nodes.
constexpr size_t graph_nodes = 128;
constexpr float largest_half = 65504.0f;

// The factor that DoRA's norms are, NULL when the module has none.
const Factor* norms_factor(const Factors& factors) {
    for (const Role role : {Role::dora, Role::magnitude}) {
        if (const auto found = factors.find(role); found != factors.end()) {
            return &found->second;
        }
    }
    return nullptr;
}

// Tells whether the norms are those of inputs: [1, inputs, ...] in the file's order. PEFT's are always of outputs, but
// have that shape for convolutions.
bool of_inputs(const Factors& factors, const Factor& norms) {
    return factors.count(Role::magnitude) == 0 && norms.dims > 1 && norms.first() == 1 &&
           ggml_nelements(norms.tensor) > 1;
}

float reciprocal(float norm, float wanted) {
    return wanted / (norm + FLT_EPSILON);
}

}  // namespace

namespace sdcpp {

Rows rows_of(const ggml_tensor* weight) {
    const int dims = ggml_n_dims(weight);
    const int64_t count = ggml_nelements(weight);
    if (dims == 1) {
        return {count, 1, 1};
    }
    const int64_t rows = weight->ne[dims - 1];
    return {rows, count / rows, weight->ne[dims - 2]};
}

Merger::Merger(int n_threads) : n_threads(n_threads) {}

Merger::~Merger() {
    if (cpu != nullptr) {
        ggml_backend_free(cpu);
    }
}

std::vector<float> Merger::compute(const Change& change, const std::vector<float>& own) {
    if (cpu == nullptr) {
        cpu = ggml_backend_cpu_init();
        if (cpu == nullptr) {
            throw std::runtime_error("LoRA: no CPU backend to merge on");
        }
    }
    ggml_backend_cpu_set_n_threads(cpu, n_threads);
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(
        ggml_init(
            {ggml_tensor_overhead() * graph_nodes + ggml_graph_overhead_custom(graph_nodes, false), nullptr, true}),
        ggml_free);
    ggml_cgraph* graph = ggml_new_graph_custom(ctx.get(), graph_nodes, false);
    ggml_tensor* result = change_graph(ctx.get(), change.factors, change.form.kind);
    ggml_tensor* weight = nullptr;
    if (change.target.on_output) {
        const Rows size = rows_of(change.tensor);
        weight = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, size.columns, size.rows);
        ggml_set_input(weight);
        result = ggml_mul_mat(ctx.get(), ggml_cont(ctx.get(), ggml_transpose(ctx.get(), weight)), result);
    }
    result = ggml_scale(ctx.get(), result, change.form.scale);
    ggml_set_output(result);
    ggml_build_forward_expand(graph, result);
    const std::unique_ptr<ggml_gallocr, decltype(&ggml_gallocr_free)> memory(
        ggml_gallocr_new(ggml_backend_cpu_buffer_type()), ggml_gallocr_free);
    if (!ggml_gallocr_alloc_graph(memory.get(), graph)) {
        throw std::runtime_error(std::string("LoRA: no host memory to change ") + change.tensor->name);
    }
    if (weight != nullptr) {
        ggml_backend_tensor_set(weight, own.data(), 0, ggml_nbytes(weight));
    }
    if (ggml_backend_graph_compute(cpu, graph) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error(std::string("LoRA: the change of ") + change.tensor->name + " could not be computed");
    }
    std::vector<float> added(static_cast<size_t>(ggml_nelements(result)));
    ggml_backend_tensor_get(result, added.data(), 0, ggml_nbytes(result));
    return added;
}

Norms Merger::norms_of(const Change& change, const std::vector<float>& own, const std::vector<float>& added) const {
    Norms norms;
    const Factor* wanted = norms_factor(change.factors);
    if (wanted == nullptr || change.of_bias) {
        return norms;
    }
    const Rows size = rows_of(change.tensor);
    const float* values = static_cast<const float*>(wanted->tensor->data);
    const auto rows = static_cast<int64_t>(added.size()) / size.columns;
    const float* weight = own.data() + change.row * size.columns;
    if (!of_inputs(change.factors, *wanted)) {
        norms.by_row.resize(static_cast<size_t>(rows));
        in_parts(rows, n_threads, [&](int64_t first, int64_t last) {
            for (int64_t row = first; row < last; ++row) {
                double sum = 0.0;
                for (int64_t i = row * size.columns; i < (row + 1) * size.columns; ++i) {
                    const double value =
                        static_cast<double>(weight[i]) + static_cast<double>(added[static_cast<size_t>(i)]);
                    sum += value * value;
                }
                norms.by_row[static_cast<size_t>(row)] = reciprocal(static_cast<float>(std::sqrt(sum)), values[row]);
            }
        });
        return norms;
    }
    const int64_t kernel = size.columns / size.channels;
    norms.by_channel.resize(static_cast<size_t>(size.channels));
    in_parts(size.channels, n_threads, [&](int64_t first, int64_t last) {
        for (int64_t channel = first; channel < last; ++channel) {
            double sum = 0.0;
            for (int64_t row = 0; row < rows; ++row) {
                for (int64_t i = row * size.columns + channel * kernel; i < row * size.columns + (channel + 1) * kernel;
                     ++i) {
                    const double value =
                        static_cast<double>(weight[i]) + static_cast<double>(added[static_cast<size_t>(i)]);
                    sum += value * value;
                }
            }
            norms.by_channel[static_cast<size_t>(channel)] =
                reciprocal(static_cast<float>(std::sqrt(sum)), values[channel]);
        }
    });
    return norms;
}

Norms Merger::norms(const Change& change) {
    if (norms_factor(change.factors) == nullptr) {
        return {};
    }
    const std::vector<float> own = weight_decode(change.tensor, weight_bytes(change.tensor), n_threads);
    return norms_of(change, own, compute(change, own));
}

void Merger::merge(ggml_tensor* tensor, const std::vector<const Change*>& changes) {
    std::vector<char> bytes = weight_bytes(tensor);
    // Every change is one of the model's own weight, so that their order does not matter.
    const std::vector<float> own = weight_decode(tensor, bytes, n_threads);
    std::vector<float> merged = own;
    const Rows size = rows_of(tensor);
    for (const Change* change : changes) {
        const std::vector<float> added = compute(*change, own);
        const Norms norms = norms_of(*change, own, added);
        const int64_t kernel = size.columns / size.channels;
        const int64_t start = change->row * size.columns;
        const auto count = static_cast<int64_t>(added.size());
        in_parts(count, n_threads, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i) {
                const auto at = static_cast<size_t>(start + i);
                float value = added[static_cast<size_t>(i)];
                if (!norms.by_row.empty()) {
                    value = norms.by_row[static_cast<size_t>(i / size.columns)] * (own[at] + value) - own[at];
                } else if (!norms.by_channel.empty()) {
                    value =
                        norms.by_channel[static_cast<size_t>(i % size.columns / kernel)] * (own[at] + value) - own[at];
                }
                merged[at] += change->strength * value;
            }
        });
    }
    const float most = tensor->type == GGML_TYPE_F16 ? largest_half : FLT_MAX;
    for (size_t at = 0; at < merged.size(); ++at) {
        if (!(std::abs(merged[at]) <= most) && std::abs(own[at]) <= most) {
            throw std::runtime_error("LoRA: merging makes the weight '" + std::string(ggml_get_name(tensor)) +
                                     "' larger than " + ggml_type_name(tensor->type) +
                                     " holds: make the strength less, or take lora_apply_mode='at_runtime'");
        }
    }
    const std::vector<char> encoded = weight_encode(tensor, merged, n_threads);
    kept.emplace(tensor, std::move(bytes));
    weight_replace(tensor, encoded);
}

bool Merger::restore(const std::function<bool()>& stopped) {
    while (!kept.empty()) {
        if (stopped && stopped()) {
            return false;
        }
        weight_replace(kept.begin()->first, kept.begin()->second);
        kept.erase(kept.begin());
    }
    return true;
}

}  // namespace sdcpp
