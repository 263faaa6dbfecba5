#include "sdcpp/streaming/long_graphs.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "ggml-impl.h"
#include "ggml_graph_cut.h"
#include "sdcpp/placement/device.h"
#include "sdcpp/streaming/cost.h"
#include "sdcpp/streaming/test_hooks.h"

namespace sdcpp {

namespace {

constexpr double long_seconds = 0.3;  // what is shorter is given to the device whole: most graphs on most devices
constexpr double part_seconds = 0.1;

}  // namespace

double cost_of_graph(ggml_cgraph* graph) {
    double cost = 0.0;
    for (int i = 0; i < graph->n_nodes; ++i) {
        cost += computes(graph->nodes[i]) ? cost_of(graph->nodes[i]) : 0.0;
    }
    return cost;
}

size_t parts_of(const Device& device, double cost) {
    if (const size_t parts = test_parts()) {
        return parts;
    }
    const double seconds = device.seconds_of_cost > 0.0 ? device.seconds_of_cost * cost : 0.0;
    return seconds < long_seconds ? 1 : static_cast<size_t>(seconds / part_seconds);
}

void note_seconds(Device& device, double cost, double seconds) {
    if (cost > 0.0) {
        device.seconds_of_cost = seconds / cost;
    }
}

ggml_status compute_in_parts(Device& device, ggml_backend_t backend, ggml_cgraph* graph, bool (*cancelled)()) {
    const auto start = std::chrono::steady_clock::now();
    const double all = cost_of_graph(graph);
    const size_t parts = parts_of(device, all);
    const double most = parts > 1 ? all / static_cast<double>(parts) : 0.0;
    double cost = 0.0;
    int begin = 0;
    for (int i = 0; parts > 1 && i + 1 < graph->n_nodes; ++i) {
        cost += computes(graph->nodes[i]) ? cost_of(graph->nodes[i]) : 0.0;
        if (cost < most || !sd::ggml_graph_cut::is_graph_cut_tensor(graph->nodes[i])) {
            continue;
        }
        ggml_cgraph part = ggml_graph_view(graph, begin, i + 1);
        const ggml_status status = ggml_backend_graph_compute(backend, &part);
        if (status != GGML_STATUS_SUCCESS || cancelled()) {
            return status != GGML_STATUS_SUCCESS ? status : GGML_STATUS_ABORTED;
        }
        begin = i + 1;
        cost = 0.0;
    }
    ggml_cgraph rest = ggml_graph_view(graph, begin, graph->n_nodes);
    const ggml_status status = ggml_backend_graph_compute(backend, begin > 0 ? &rest : graph);
    note_seconds(device, all, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    return status;
}

}  // namespace sdcpp
