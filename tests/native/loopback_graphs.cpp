// Graphs: what they cost, what they read and write, and computing them on the CPU backend.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <stdexcept>
#include <unordered_map>

#include "ggml-impl.h"
#include "loopback_config.h"
#include "loopback_internal.h"
#include "loopback_state.h"
#include "sdcpp/kernels/policy.h"

namespace loopback {

// The operations that the CPU backend would run too.
static bool is_run(const ggml_tensor* node) {
    return (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && !is_view_op(node);
}

loopback_cost State::graph_cost(const Device& device, const ggml_cgraph* graph) const {
    loopback_cost cost{};
    for (int i = 0; i < graph->n_nodes; i++) {
        if (is_run(graph->nodes[i])) {
            add_op(device.config, graph->nodes[i], cost);
        }
    }
    if (cost.ops > 0) {
        cost.seconds += device.config.graph_latency;
    }
    cost.seconds = to_seconds(to_time(cost.seconds));
    return cost;
}

// Returns a number that graphs share which compute the same of the same places: FNV-1a, of words.
static uint64_t fingerprint(const ggml_cgraph* graph) {
    uint64_t hash = 14695981039346656037u;
    const auto add = [&](uint64_t word) { hash = (hash ^ word) * 1099511628211u; };
    const auto place = [](const ggml_tensor* tensor) {
        return tensor != nullptr ? reinterpret_cast<uintptr_t>(tensor->data) : 0;
    };
    for (int i = 0; i < graph->n_nodes; ++i) {
        const ggml_tensor& node = *graph->nodes[i];
        add(static_cast<uint64_t>(node.op) << 32 | static_cast<uint64_t>(node.type));
        add(place(&node));
        for (int dim = 0; dim < GGML_MAX_DIMS; ++dim) {
            add(static_cast<uint64_t>(node.ne[dim]) << 32 ^ node.nb[dim]);
        }
        for (const int32_t param : node.op_params) {
            add(static_cast<uint32_t>(param));
        }
        for (const ggml_tensor* source : node.src) {
            add(place(source));
        }
    }
    return hash;
}

ggml_status State::compute(Stream& stream, const ggml_cgraph* graph) {
    Device& device = *stream.device;
    if (graph->n_nodes > 0) {
        uint64_t& last = stream.graphs[graph->nodes[0]];
        const uint64_t now = fingerprint(graph);
        if (sdcpp_graphs_same()) {
            ++device.books.same_graphs;
            if (now != last) {
                report(device, LOOPBACK_WRONG_GRAPH, "a graph is said to be the last one, and is another");
            }
        }
        last = now;
    }
    const loopback_cost cost = graph_cost(device, graph);
    if (cost.ops == 0) {
        return GGML_STATUS_SUCCESS;
    }
    if (++device.graph_ordinal == device.config.throw_at_graph) {
        throw std::runtime_error("the loopback accelerator was told to throw");
    }
    const Operation operation = begin(device, &stream, "graph");

    // The CPU backend gets copies of the tensors that point to the real bytes. The caller's tensors stay as they are,
    // so that other threads may look at them meanwhile.
    std::deque<ggml_tensor> copies;
    std::unordered_map<const ggml_tensor*, ggml_tensor*> copy_of;
    copy_of.reserve(static_cast<size_t>(graph->n_nodes) * 2);
    std::vector<ggml_tensor*> nodes;
    nodes.reserve(static_cast<size_t>(cost.ops));
    bool computable = true;
    bool dry = device.config.dry != 0;

    auto real_data = [&](const ggml_tensor* tensor, const Memory* memory) -> void* {
        if (memory == nullptr) {
            memory = find(tensor->data);
        }
        if (memory != nullptr && memory->contains(address_of(tensor), ggml_nbytes(tensor))) {
            char* real = memory->real(address_of(tensor));
            dry = dry || real == nullptr;
            return real;
        }
        if (memory != nullptr || tensor->data == nullptr || is_device_address(tensor->data)) {
            computable = false;
            return nullptr;
        }
        return tensor->data;
    };
    auto copy_tensor = [&](const ggml_tensor* tensor, const Memory* memory) {
        auto [entry, is_new] = copy_of.emplace(tensor, nullptr);
        if (is_new) {
            copies.push_back(*tensor);
            ggml_tensor& copy = copies.back();
            copy.buffer = nullptr;
            copy.extra = nullptr;
            copy.view_src = nullptr;
            copy.data = real_data(tensor, memory);
            std::fill(std::begin(copy.src), std::end(copy.src), nullptr);
            entry->second = &copy;
        }
        return entry->second;
    };

    for (int i = 0; i < graph->n_nodes; i++) {
        const ggml_tensor* node = graph->nodes[i];
        if (!is_run(node)) {
            continue;
        }
        ggml_tensor* sources[GGML_MAX_SRC] = {};
        for (int j = 0; j < GGML_MAX_SRC; j++) {
            const ggml_tensor* source = node->src[j];
            if (source == nullptr) {
                continue;
            }
            Memory* memory = nullptr;
            if (reads_source(node, j) && !ggml_is_empty(source)) {
                memory = operand(operation, source->data, ggml_nbytes(source), "source of an operation,", source->name);
                if (memory != nullptr) {
                    read(operation, *memory, address_of(source), ggml_nbytes(source), source->name);
                }
                sources[j] = copy_tensor(source, memory);
            } else {
                const bool was_computable = computable;
                sources[j] = copy_tensor(source, nullptr);
                computable = was_computable;
            }
        }
        Memory* memory = operand(operation, node->data, ggml_nbytes(node), "result of an operation,", node->name);
        if (memory != nullptr) {
            write(operation, *memory, address_of(node), ggml_nbytes(node), node->name);
        }
        ggml_tensor* copy = copy_tensor(node, memory);
        std::copy(std::begin(sources), std::end(sources), std::begin(copy->src));
        nodes.push_back(copy);
    }
    if (!computable) {
        return GGML_STATUS_FAILED;
    }

    ggml_status status = GGML_STATUS_SUCCESS;
    if (!dry && !run_on_cpu(device, nodes, status)) {
        return GGML_STATUS_FAILED;
    }

    const bool blocking = device.config.async == 0;
    const Engine::Interval interval = run(device, device.compute_engine, &stream, cost.seconds, blocking);
    if (blocking) {
        host_.join(stream.clock);
        finish_completed();
    }
    if (device.first_graph < 0) {
        device.first_graph = interval.begin;
    }
    device.last_graph_end = std::max(device.last_graph_end, interval.end);
    device.books.graphs++;
    device.books.ops += static_cast<uint64_t>(cost.ops);
    device.books.flops += cost.flops;
    add_log(LOOPBACK_LOG_GRAPH, &device, &stream, blocking ? LOOPBACK_FLAG_BLOCKING : 0, cost.ops, interval.begin,
            interval.end);
    return status;
}

bool State::run_on_cpu(Device& device, std::vector<ggml_tensor*>& nodes, ggml_status& status) {
    ggml_backend_dev_t cpu_device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device.cpu == nullptr && cpu_device != nullptr) {
        device.cpu = ggml_backend_dev_init(cpu_device, nullptr);
    }
    if (device.cpu == nullptr) {
        fprintf(stderr, "loopback: no CPU backend is loaded, which would compute the graphs\n");
        return false;
    }
    auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu_device), "ggml_backend_set_n_threads"));
    if (set_threads != nullptr) {
        const int64_t threads = device.config.threads;
        set_threads(device.cpu, threads > 0 ? static_cast<int>(threads) : default_threads());
    }
    ggml_cgraph graph{};
    graph.size = graph.n_nodes = static_cast<int>(nodes.size());
    graph.nodes = nodes.data();
    status = ggml_backend_graph_compute(device.cpu, &graph);
    return true;
}

}  // namespace loopback
