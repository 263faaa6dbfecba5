#include <algorithm>

#include "sdcpp/kernels/cuda/nodes.h"

namespace sdcpp::cuda {

namespace {

bool computes_nothing(const ggml_tensor& node) {
    return ggml_is_empty(&node) || node.op == GGML_OP_NONE || node.op == GGML_OP_RESHAPE || node.op == GGML_OP_VIEW ||
           node.op == GGML_OP_PERMUTE || node.op == GGML_OP_TRANSPOSE;
}

}  // namespace

void Kept::forget() {
    values.reset();
    input = nullptr;
}

void Kept::reach(const ggml_cgraph* graph, int index) {
    if (in_halves != nullptr && graph->nodes[index]->src[0] != in_halves) {
        in_halves = nullptr;
    }
    if (graph->nodes != nodes || index < next) {
        forget();
        nodes = graph->nodes;
        next = 0;
    }
    for (; next < index; ++next) {
        if (input != nullptr && !computes_nothing(*nodes[next]) && share_bytes(nodes[next], input)) {
            forget();
        }
    }
}

const void* Kept::find(const ggml_tensor* wanted, ggml_type as) const {
    const bool same = input != nullptr && type == as && input->data == wanted->data &&
                      ggml_nelements(input) == ggml_nelements(wanted);
    return same ? values->get() : nullptr;
}

void* Kept::make(ggml_backend_cuda_context& context, const ggml_tensor* of, ggml_type as, int from) {
    forget();
    values = std::make_unique<ggml_cuda_pool_alloc<char>>(context.pool(), ggml_row_size(as, ggml_nelements(of)));
    input = of;
    type = as;
    next = from;
    return values->get();
}

Kept& kept_of(ggml_backend_cuda_context& context) {
    if (context.kept == nullptr) {
        context.kept = std::make_shared<Kept>();
    }
    return *context.kept;
}

int uses_of(const ggml_cgraph* graph, const ggml_tensor* tensor) {
    const size_t slot = ggml_hash_find(&graph->visited_hash_set, tensor);
    return slot != GGML_HASHSET_FULL && ggml_bitset_get(graph->visited_hash_set.used, slot) ? graph->use_counts[slot]
                                                                                            : -1;
}

int Run::next_index() const {
    int index = last_ + 1;
    while (index < graph_->n_nodes && computes_nothing(*graph_->nodes[index])) {
        ++index;
    }
    return index;
}

ggml_tensor* Run::next() const {
    const int index = next_index();
    const bool there = index < graph_->n_nodes && (graph_->nodes[index]->flags & GGML_TENSOR_FLAG_COMPUTE) != 0;
    return there ? graph_->nodes[index] : nullptr;
}

void Run::take() {
    last_ = next_index();
}

bool Run::passes_on() const {
    const ggml_tensor* const from = last();
    const ggml_tensor* const to = next();
    if (to == nullptr) {
        return false;
    }
    for (const ggml_tensor* source : to->src) {
        if (source == nullptr || unshaped(source) != from) {
            continue;
        }
        for (const ggml_tensor* form = source;; form = form->src[0]) {
            if (uses_of(graph_, form) != 1 || (form->flags & GGML_TENSOR_FLAG_OUTPUT) != 0) {
                return false;
            }
            if (form == from) {
                // What is computed in place is a view of the values before, which nothing else may read; but for what
                // read them before a convolution that lies in their memory.
                return from->view_src == nullptr || from->op == GGML_OP_CONV_2D ||
                       uses_of(graph_, from->view_src) == 1;
            }
        }
    }
    return false;
}

bool Run::overlaps(const ggml_tensor* result) const {
    const int end = std::min(next_index(), graph_->n_nodes - 1);  // the next node, too
    for (int i = first_; i <= end; ++i) {
        const ggml_tensor* const node = graph_->nodes[i];
        for (const ggml_tensor* source : node->src) {
            if (source == nullptr || source == node || !share_bytes(source, result)) {
                continue;
            }
            const bool ours =
                std::find(graph_->nodes + first_, graph_->nodes + i, unshaped(source)) != graph_->nodes + i;
            // A sum, unlike windows, is read where it is written, and so is all that a convolution which lies in its
            // source's memory shares with that.
            const bool sums = node->op == GGML_OP_ADD && source->type == result->type &&
                              ggml_are_same_shape(source, result) && ggml_is_contiguous(source);
            const bool lies_there = node->op == GGML_OP_CONV_2D && node->view_src != nullptr;
            const bool in_place = (sums || lies_there) && source->data == result->data;
            if (!ours && !in_place) {
                return true;
            }
        }
    }
    return false;
}

const ggml_tensor* unshaped(const ggml_tensor* tensor) {
    while (tensor->op == GGML_OP_RESHAPE) {
        tensor = tensor->src[0];
    }
    return tensor;
}

bool share_bytes(const ggml_tensor* a, const ggml_tensor* b) {
    const auto* const a_data = static_cast<const char*>(a->data);
    const auto* const b_data = static_cast<const char*>(b->data);
    return a_data < b_data + ggml_nbytes(b) && b_data < a_data + ggml_nbytes(a);
}

}  // namespace sdcpp::cuda
