#include "sdcpp/threads/deep_graphs.h"

#include <vector>

#include "ggml-impl.h"

namespace {

struct Open {
    ggml_tensor* tensor;
    int next;  // source that is looked at next
};

bool is_visited(const ggml_cgraph* graph, ggml_tensor* tensor) {
    const size_t place = ggml_hash_find(&graph->visited_hash_set, tensor);
    return place != GGML_HASHSET_FULL && ggml_bitset_get(graph->visited_hash_set.used, place);
}

}  // namespace

void sdcpp_visit_sources_first(ggml_cgraph* graph, ggml_tensor* tensor, bool compute,
                               size_t (*visit)(ggml_cgraph*, ggml_tensor*, bool)) {
    const bool backwards = graph->order == GGML_CGRAPH_EVAL_ORDER_RIGHT_TO_LEFT;
    thread_local std::vector<Open> open;  // keeps its memory: a network's graph is built for every pass
    open.assign(1, {tensor, is_visited(graph, tensor) ? GGML_MAX_SRC : 0});
    while (!open.empty()) {
        Open& last = open.back();
        if (last.next == GGML_MAX_SRC) {
            ggml_tensor* const done = last.tensor;
            open.pop_back();
            visit(graph, done, compute);
            continue;
        }
        ggml_tensor* const source = last.tensor->src[backwards ? GGML_MAX_SRC - 1 - last.next : last.next];
        ++last.next;
        // What ggml_cast makes is a source of itself; there is no other circle.
        if (source != nullptr && source != last.tensor && !is_visited(graph, source)) {
            open.push_back({source, 0});
        }
    }
}
