// Reading a graph for nodes that one launch computes, and what the kernels share.
#pragma once

#include <cstdint>
#include <memory>

#include "common.cuh"
#include "ggml-impl.h"

namespace sdcpp::cuda {

// Nodes of a graph that follow one another, those that compute nothing aside.
class Run {
public:
    Run(ggml_cgraph* graph, int first) : graph_(graph), first_(first), last_(first) {}

    ggml_tensor* first() const { return graph_->nodes[first_]; }
    ggml_cgraph* graph() const { return graph_; }
    // The last node that was taken.
    ggml_tensor* last() const { return graph_->nodes[last_]; }
    // The node of the graph after the last one.
    int end() const { return last_ + 1; }
    // How many nodes of the graph were taken, those that compute nothing with them.
    int count() const { return last_ - first_ + 1; }
    // The next node that computes; NULL at the end.
    ggml_tensor* next() const;
    // Takes the next node.
    void take();
    // Tells whether the last node's values are read by the next one alone, so that they need not be written. What the
    // next node reads may be a reshaped form of them.
    bool passes_on() const;
    // Tells whether memory that a node's values go to is read by one of the nodes taken or by the next one, other than
    // as values of the taken nodes themselves, or value by value where the result lies.
    bool overlaps(const ggml_tensor* result) const;

private:
    int next_index() const;

    ggml_cgraph* graph_;
    int first_;
    int last_;
};

// Returns how many nodes of a graph read a tensor; -1: it is not known.
int uses_of(const ggml_cgraph* graph, const ggml_tensor* tensor);
// Returns the tensor that a reshaped one is made of, else itself.
const ggml_tensor* unshaped(const ggml_tensor* tensor);
// Tells whether two tensors share bytes.
bool share_bytes(const ggml_tensor* a, const ggml_tensor* b);

// Kernels of cuBLASLt, by the shapes that they are for.
struct Products;

// A product's input in the type of its weights, which other products of the same graph read, too.
struct Kept {
    // Of the graph that is computed.
    ggml_tensor** nodes = nullptr;
    int next = 0;
    const ggml_tensor* input = nullptr;
    ggml_type type = GGML_TYPE_COUNT;
    std::unique_ptr<ggml_cuda_pool_alloc<char>> values;
    // A product whose values its one reader, which comes next, takes as halves; NULL: there is none.
    const ggml_tensor* in_halves = nullptr;
    // Of all graphs.
    std::shared_ptr<Products> products;

    // Forgets what does not hold any more before a node is computed.
    void reach(const ggml_cgraph* graph, int index);
    void forget();
    // Returns the values of an input; NULL: they are not kept.
    const void* find(const ggml_tensor* wanted, ggml_type as) const;
    // Returns room for the values of an input; `from`: the first node that is computed after they are made.
    void* make(ggml_backend_cuda_context& context, const ggml_tensor* of, ggml_type as, int from);
};
Kept& kept_of(ggml_backend_cuda_context& context);

// A kind of nodes that we compute. Returns how many nodes of the graph; 0: none, ggml computes the first one.
using Kernel = int(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first);

// GGML_OP_CONV_2D, a norm before it, and scales and sums after it: a product on tensor cores of the filters and the
// windows of the picture, which are read from the picture itself.
Kernel convolution;
// GGML_OP_GROUP_NORM, a factor and a summand a channel, and SiLU.
Kernel group_norm;
// GGML_OP_MUL_MAT of f16 and bf16 weights with an input of many rows, and sums or a rounding after it.
Kernel matrix_product;
// Tells whether a node is one that reads its input in another type, and returns that; GGML_TYPE_COUNT: it is not.
ggml_type product_type(const ggml_backend_cuda_context& context, const ggml_tensor& node);
// GGML_OP_FLASH_ATTN_EXT without a mask, of halves; rounds for a product after it.
Kernel attention;
// The rotation of queries and keys, as the engine writes it.
Kernel rotation;
// Sums, products and functions of single values, that follow one another.
Kernel element_wise;
// Tells whether that begins with a sum of a tensor and a row of which halves of rows alone are read, as in a gated layer.
bool reads_halves(ggml_backend_cuda_context& context, ggml_cgraph* graph, int first);

}  // namespace sdcpp::cuda
