// Merging: changes are added to the weights of a loaded model, and taken off again bit for bit.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "sdcpp/lora/change.h"
#include "sdcpp/lora/targets.h"

namespace sdcpp {

// One module's change to one tensor of the model, in host memory.
struct Change {
    Factors factors;
    Form form;
    Target target;
    ggml_tensor* tensor = nullptr;  // the weight, or the bias
    bool of_bias = false;
    int64_t row = 0;        // the first row that it changes
    float strength = 1.0f;  // what the user multiplies it by
    size_t lora = 0;        // which of the LoRAs it is part of
};

// A weight's size as changes count it.
struct Rows {
    int64_t rows = 0;      // outputs
    int64_t columns = 0;   // inputs times the kernel
    int64_t channels = 0;  // inputs
};

Rows rows_of(const ggml_tensor* weight);

// The norms of DoRA as factors for the rows, or for the input channels, of weight + change; empty: there is none.
struct Norms {
    std::vector<float> by_row;
    std::vector<float> by_channel;
};

class Merger {
public:
    explicit Merger(int n_threads);
    ~Merger();
    Merger(const Merger&) = delete;
    Merger& operator=(const Merger&) = delete;

    // Adds changes of one tensor to it; its own bytes are kept for restore().
    void merge(ggml_tensor* tensor, const std::vector<const Change*>& changes);
    // Gives every tensor that was changed its own bytes back; false when it was stopped in between.
    bool restore(const std::function<bool()>& stopped = {});
    // Returns DoRA's factors of a change to a weight as it is now.
    Norms norms(const Change& change);

private:
    // Returns the change times its scale, without the user's strength: f32, row after row.
    std::vector<float> compute(const Change& change, const std::vector<float>& own);
    Norms norms_of(const Change& change, const std::vector<float>& own, const std::vector<float>& added) const;

    const int n_threads;
    ggml_backend_t cpu = nullptr;
    std::map<ggml_tensor*, std::vector<char>> kept;
};

}  // namespace sdcpp
