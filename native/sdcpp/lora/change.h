// The change that one module of a LoRA makes to a weight: from factors, as a graph of ggml's operations. Every formula
// is here, for merging (on the CPU) as for applying at run time (in the module's own graph, on its device).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "ggml.h"
#include "sdcpp/lora/roles.h"

namespace sdcpp {

// One tensor of a module, with the number of dimensions that the file gives it: ggml forgets outer ones of size 1.
struct Factor {
    ggml_tensor* tensor = nullptr;
    int dims = 1;

    int64_t first() const { return tensor->ne[dims - 1]; }  // the outermost dimension: the first one of a file's shape
    int64_t rest() const { return ggml_nelements(tensor) / first(); }
};

using Factors = std::map<Role, Factor>;

enum class Kind { none, low_rank, hadamard, kronecker, difference };

// What the factors of a module make.
struct Form {
    Kind kind = Kind::none;
    int64_t rows = 0;     // outputs; of a difference, all its elements
    int64_t columns = 0;  // inputs times the kernel
    float scale = 1.0f;   // alpha / rank
    std::string problem;  // why they make nothing
};

// Tells what factors in host memory, of type f32, make.
Form form_of(const Factors& factors);

// Returns the change before its scale: f32, [columns, rows] in ggml's order.
ggml_tensor* change_graph(ggml_context* ctx, const Factors& factors, Kind kind);

// Multiplies an input by a matrix.
using Multiply = std::function<ggml_tensor*(ggml_tensor* x, ggml_tensor* matrix)>;

// Returns the change's product with an input whose innermost dimension are a linear layer's inputs, before its scale,
// by way of the factors where that takes less work than building the change.
ggml_tensor* change_product(ggml_context* ctx, const Factors& factors, Kind kind, ggml_tensor* x,
                            const Multiply& multiply);

// Returns a factor as a matrix: [rest, first] in ggml's order.
ggml_tensor* matrix_of(ggml_context* ctx, const Factor& factor);

}  // namespace sdcpp
