#include "sdcpp/lanes/merge.h"

#include <algorithm>

#include "ggml-impl.h"

namespace sdcpp {

namespace {

constexpr size_t extra_leafs = 16;  // that a runner adds to a graph, and some more

}  // namespace

ggml_cgraph* merge_graphs(ggml_context* tensors, const std::vector<ggml_cgraph*>& graphs,
                          const std::vector<Scan>& scans) {
    size_t size = extra_leafs;
    int nodes = 0;
    for (const ggml_cgraph* graph : graphs) {
        size += static_cast<size_t>(std::max(graph->n_nodes, graph->n_leafs));
        nodes += graph->n_nodes;
    }
    ggml_cgraph* const merged = ggml_new_graph_custom(tensors, size, false);
    const size_t segments = scans.front().begin.size();
    for (size_t segment = 0; segment < segments; ++segment) {
        for (size_t lane = 0; lane < graphs.size(); ++lane) {
            ggml_cgraph* const graph = graphs[lane];
            const std::vector<int>& begin = scans[lane].begin;
            const int end = segment + 1 < segments ? begin[segment + 1] : graph->n_nodes;
            for (int i = begin[segment]; i < end; ++i) {
                ggml_build_forward_expand(merged, graph->nodes[i]);  // its sources are there already
            }
        }
    }
    for (ggml_cgraph* graph : graphs) {
        for (int i = 0; i < graph->n_leafs; ++i) {
            ggml_build_forward_expand(merged, graph->leafs[i]);  // also those that no node reads
        }
    }
    return merged->n_nodes == nodes ? merged : nullptr;
}

std::vector<size_t> lane_counts(size_t passes, size_t pictures) {
    std::vector<size_t> counts;
    const auto add = [&](size_t items, size_t unit) {
        for (size_t graphs = items; graphs > 0; --graphs) {
            const size_t count = unit * ((items + graphs - 1) / graphs);
            if (count <= most_lanes && (counts.empty() || counts.back() < count)) {
                counts.push_back(count);
            }
        }
    };
    add(passes, 1);
    add(pictures, passes);
    return counts;
}

}  // namespace sdcpp
