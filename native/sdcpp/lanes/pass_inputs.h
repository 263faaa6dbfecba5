// What a pass of the denoiser reads besides weights. Passes of which no more than the values differ have the same
// graph: the engine's networks look at what their inputs hold only while they are computed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace sdcpp {

class PassInputs {
public:
    // Adds a tensor of the engine's, or NULL for one that is not given.
    template <typename Tensor>
    void add_tensor(const Tensor* tensor) {
        const bool given = tensor != nullptr && !tensor->empty();
        key_.push_back(given ? static_cast<int64_t>(tensor->shape().size()) : -1);
        if (given) {
            key_.insert(key_.end(), tensor->shape().begin(), tensor->shape().end());
            ambiguous_ = ambiguous_ || role_of(tensor->data()) >= 0;
            data_.push_back(tensor->data());
        }
    }
    // Adds several; NULL: none are given.
    template <typename Tensors>
    void add_tensors(const Tensors* tensors) {
        add_number(tensors != nullptr ? static_cast<double>(tensors->size()) : -1.0);
        for (size_t i = 0; tensors != nullptr && i < tensors->size(); ++i) {
            add_tensor(&(*tensors)[i]);
        }
    }
    // Adds what a graph is built with.
    void add_number(double number) {
        key_.emplace_back();
        std::memcpy(&key_.back(), &number, sizeof(number));
    }

    // Tells whether passes have the same graph.
    bool same_graph(const PassInputs& other) const { return !ambiguous_ && !other.ambiguous_ && key_ == other.key_; }
    // Returns which of the tensors has its values there; -1: none.
    int role_of(const void* data) const {
        const auto found = std::find(data_.begin(), data_.end(), data);
        return found != data_.end() ? static_cast<int>(found - data_.begin()) : -1;
    }
    // Returns where a tensor's values are.
    const void* data(int role) const { return data_[static_cast<size_t>(role)]; }

private:
    std::vector<int64_t> key_;
    std::vector<const void*> data_;
    bool ambiguous_ = false;  // two tensors have the same values
};

// Returns what a pass with the engine's parameters reads.
template <typename Params>
PassInputs inputs_of(const Params& params) {
    PassInputs inputs;
    inputs.add_tensor(params.x);
    inputs.add_tensor(params.timesteps);
    inputs.add_tensor(params.context);
    inputs.add_tensor(params.c_concat);
    inputs.add_tensor(params.y);
    inputs.add_tensor(params.t5_ids);
    inputs.add_tensor(params.t5_weights);
    inputs.add_tensor(params.guidance);
    inputs.add_tensors(params.ref_latents);
    inputs.add_tensors(params.controls);
    inputs.add_tensor(params.vace_context);
    inputs.add_number(params.increase_ref_index ? 1.0 : 0.0);
    inputs.add_number(params.num_video_frames);
    inputs.add_number(params.control_strength);
    inputs.add_number(params.vace_strength);
    inputs.add_number(params.skip_layers != nullptr ? static_cast<double>(params.skip_layers->size()) : 0.0);
    for (size_t i = 0; params.skip_layers != nullptr && i < params.skip_layers->size(); ++i) {
        inputs.add_number((*params.skip_layers)[i]);
    }
    return inputs;
}

// Says, until the end of the scope, what this thread's next pass reads.
class PassScope {
public:
    explicit PassScope(PassInputs inputs);
    ~PassScope();
    PassScope(const PassScope&) = delete;
    PassScope& operator=(const PassScope&) = delete;

    // That of this thread; NULL: it is not said.
    static const PassInputs* current();

private:
    const PassInputs inputs_;
    const PassInputs* const outer_;
};

}  // namespace sdcpp
