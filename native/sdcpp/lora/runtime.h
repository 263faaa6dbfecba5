// Applying at run time: a module's graphs add what the changes make of each layer's input, and its weights stay as they
// are, quantised ones too.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "ggml_extend.hpp"
#include "sdcpp/lora/merge.h"

namespace sdcpp {

// A change whose tensors lie on the device that computes the module.
struct Attached {
    Factors factors;
    Form form;
    float strength = 1.0f;
    int64_t row = 0;
    bool on_output = false;
    ggml_tensor* by_row = nullptr;      // DoRA's factors of the rows
    ggml_tensor* by_channel = nullptr;  // or of the input channels
};

// Tells whether a tensor's changes can be applied to its layer's output: weights of linear layers and convolutions.
// Others are merged, which costs little: they are small, or a difference takes as much memory as they do.
bool applies_at_runtime(const Change& change);

// The changes of one module's layers, and their tensors.
class RuntimeLoras : public WeightAdapter {
public:
    // Copies the changes' tensors to the device that runs a module: "diffusion", "te" or "vae". is_half tells which of
    // them f16 holds as their file does.
    RuntimeLoras(ggml_backend_t backend, const char* module, const std::vector<const Change*>& changes,
                 const std::vector<Norms>& norms, const std::function<bool(const ggml_tensor*)>& is_half);
    ~RuntimeLoras();

    ggml_tensor* patch_weight(ggml_context* ctx, ggml_backend_t backend, ggml_tensor* weight,
                              const std::string& weight_name) override;
    ggml_tensor* forward_with_lora(ggml_context* ctx, ggml_backend_t backend, ggml_tensor* x, ggml_tensor* w,
                                   ggml_tensor* b, const std::string& prefix, ForwardParams params) override;
    size_t get_extra_graph_size() override;

private:
    struct Weights;

    std::unique_ptr<Weights> weights;
    std::unordered_map<std::string, std::vector<Attached>> attached;
};

}  // namespace sdcpp
