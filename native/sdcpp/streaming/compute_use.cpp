// Lays graphs out in addresses without memory, and notes for each node what its compute buffer holds.
#include "sdcpp/streaming/compute_use.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "sdcpp/kernels/graph.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/streaming/common.h"
#include "sdcpp/streaming/test_hooks.h"

namespace sdcpp {

namespace {

// Backends that take device memory of their own while they compute, and what they take whatever they compute: kernels
// that are loaded when they are first needed, and cuBLAS's workspace, of which the driver counted up to 235 MB on an
// H100; and what it adds to each block of an arena, up to 2 MiB.
const char* const pool_backends[] = {"CUDA", "ROCm", "MUSA"};
constexpr uint64_t pool_base = 288ull << 20;

// What a backend's pool holds at most at once while it computes a graph: the operands and results of one matrix product
// in half precision, and a matrix of quantized weights in it; for attention also the parts of a result in f32; and what
// our kernels take, and keep from one operation to the next.
uint64_t pool_bytes(ggml_cgraph* graph) {
    uint64_t most = 0;
    uint64_t kept = 0;
    for (int i = 0; i < graph->n_nodes; ++i) {
        const ggml_tensor* node = graph->nodes[i];
        uint64_t bytes = 0;
        if (node->op == GGML_OP_MUL_MAT) {
            bytes = 2 * static_cast<uint64_t>(ggml_nelements(node) + ggml_nelements(node->src[1]));
            bytes +=
                ggml_is_quantized(node->src[0]->type) ? 2 * static_cast<uint64_t>(ggml_nelements(node->src[0])) : 0;
        } else if (node->op == GGML_OP_FLASH_ATTN_EXT) {
            bytes = 2 * static_cast<uint64_t>(ggml_nelements(node->src[1]) + ggml_nelements(node->src[2])) +
                    4 * static_cast<uint64_t>(ggml_nelements(node));
        }
        most = std::max({most, bytes, kernel_pool_bytes(node)});
        kept = std::max(kept, kernel_kept_bytes(node));
    }
    return most + kept;
}

// A buffer type that gives addresses but no memory, else like the device's, so that a graph can be laid out before
// there is a compute buffer.
class Mock {
public:
    explicit Mock(ggml_backend_buffer_type_t real) : real_(real) {
        type_ = {{[](ggml_backend_buffer_type_t) { return "mock"; }, alloc,
                  [](ggml_backend_buffer_type_t type) { return ggml_backend_buft_get_alignment(self(type)->real_); },
                  [](ggml_backend_buffer_type_t type) { return ggml_backend_buft_get_max_size(self(type)->real_); },
                  [](ggml_backend_buffer_type_t type, const ggml_tensor* tensor) {
                      return ggml_backend_buft_get_alloc_size(self(type)->real_, tensor);
                  },
                  [](ggml_backend_buffer_type_t) { return false; }},
                 nullptr,
                 this};
    }

    ggml_backend_buffer_type_t type() { return &type_; }
    // The one buffer that was allocated; NULL when there were several.
    ggml_backend_buffer_t buffer() const { return count_ == 1 ? buffer_ : nullptr; }

private:
    static Mock* self(ggml_backend_buffer_type_t type) { return static_cast<Mock*>(type->context); }

    static ggml_backend_buffer_t alloc(ggml_backend_buffer_type_t type, size_t size) {
        ggml_backend_buffer_i calls = {};
        calls.get_base = [](ggml_backend_buffer_t) -> void* { return reinterpret_cast<void*>(uintptr_t{1} << 40); };
        ++self(type)->count_;
        return self(type)->buffer_ = ggml_backend_buffer_init(type, calls, nullptr, size);
    }

    ggml_backend_buffer_type_t real_;
    ggml_backend_buffer_type type_;
    ggml_backend_buffer_t buffer_ = nullptr;
    int count_ = 0;
};

// Lays a graph out as its allocator will.
ComputeUse lay_out(ggml_cgraph* graph, ggml_backend_buffer_type_t type) {
    std::vector<std::pair<ggml_tensor*, ggml_tensor>> before;
    each_tensor(graph, [&](ggml_tensor* tensor) { before.emplace_back(tensor, *tensor); });
    Mock mock(type);
    ComputeUse use;
    ggml_gallocr_ptr allocator(ggml_gallocr_new(mock.type()));
    const bool done = ggml_gallocr_reserve(allocator.get(), graph) && ggml_gallocr_alloc_graph(allocator.get(), graph);
    use.buffer = ggml_gallocr_get_buffer_size(allocator.get(), 0);
    if (done && mock.buffer() != nullptr) {
        note_use(graph, type, mock.buffer(), use);
    }
    for (const auto& [tensor, was] : before) {
        *tensor = was;
    }
    return use;
}

}  // namespace

const ggml_tensor* root(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

void each_tensor(ggml_cgraph* graph, const std::function<void(ggml_tensor*)>& visit) {
    std::for_each(graph->leafs, graph->leafs + graph->n_leafs, visit);
    std::for_each(graph->nodes, graph->nodes + graph->n_nodes, visit);
}

uint64_t shape_of(ggml_cgraph* graph, bool and_place) {
    uint64_t hash = hash_begin;
    each_tensor(graph, [&](const ggml_tensor* tensor) {
        hash = mix(mix(hash, static_cast<uint64_t>(tensor->op)), static_cast<uint64_t>(tensor->type));
        hash = mix(hash, static_cast<uint64_t>(tensor->flags));
        for (int64_t size : tensor->ne) {
            hash = mix(hash, static_cast<uint64_t>(size));
        }
        for (const ggml_tensor* source : tensor->src) {
            // A graph's tensors follow one another in its memory, so that their distance tells which one is read.
            if (source != nullptr && source->op != GGML_OP_NONE) {
                hash = mix(hash, reinterpret_cast<uintptr_t>(tensor) - reinterpret_cast<uintptr_t>(source));
            } else if (source != nullptr && and_place) {
                hash = mix(hash, reinterpret_cast<uintptr_t>(source));
            }
        }
    });
    return hash;
}

void note_use(ggml_cgraph* graph, ggml_backend_buffer_type_t type, ggml_backend_buffer_t buffer, ComputeUse& use) {
    struct Life {
        int first;
        int last;
    };
    const int nodes = graph->n_nodes;
    std::unordered_map<const ggml_tensor*, Life> lives;
    const auto* const base = static_cast<const char*>(ggml_backend_buffer_get_base(buffer));
    const auto is_there = [&](const ggml_tensor* tensor) { return tensor->buffer == buffer; };
    for (int i = 0; i < graph->n_leafs; ++i) {
        if (is_there(root(graph->leafs[i]))) {
            lives[root(graph->leafs[i])] = {0, nodes - 1};
        }
    }
    std::unordered_set<const ggml_tensor*> read;
    for (int i = 0; i < nodes; ++i) {
        read.insert(graph->nodes[i]->src, graph->nodes[i]->src + GGML_MAX_SRC);
    }
    for (int i = 0; i < nodes; ++i) {
        const ggml_tensor* node = graph->nodes[i];
        const ggml_tensor* values = root(node);
        use.offsets.push_back(is_there(values) ? static_cast<const char*>(values->data) - base : -1);
        if (use.offsets.back() >= 0) {
            // What no node reads the engine may read once all are computed.
            const bool stays = ((node->flags | values->flags) & GGML_TENSOR_FLAG_OUTPUT) != 0 || read.count(node) == 0;
            Life& life = lives.try_emplace(values, Life{i, i}).first->second;
            life.last = stays ? nodes - 1 : std::max(life.last, i);
        }
        for (const ggml_tensor* source : node->src) {
            const auto life = source != nullptr ? lives.find(root(source)) : lives.end();
            if (life != lives.end()) {
                life->second.last = std::max(life->second.last, i);
            }
        }
    }
    use.heights.assign(static_cast<size_t>(nodes), 0);
    use.values.assign(static_cast<size_t>(nodes), 0);
    for (const auto& [tensor, life] : lives) {
        const uint64_t bytes = ggml_backend_buft_get_alloc_size(type, tensor);
        const uint64_t begin = static_cast<uint64_t>(static_cast<const char*>(tensor->data) - base);
        const uint64_t end = keeps("height") ? begin + bytes : 0;
        for (int i = life.first; i <= life.last; ++i) {
            use.heights[static_cast<size_t>(i)] = std::max(use.heights[static_cast<size_t>(i)], end);
            use.values[static_cast<size_t>(i)] += bytes;
        }
    }
}

std::shared_ptr<const ComputeUse> compute_use(Placement& placement, ggml_cgraph* graph) {
    const uint64_t shape = shape_of(graph);
    ComputeUses& uses = placement.compute_uses;
    const auto known = std::find_if(uses.begin(), uses.end(), [&](const auto& use) { return use.first == shape; });
    if (known != uses.end()) {
        std::rotate(uses.begin(), known, known + 1);
        return uses.front().second;
    }
    auto use =
        std::make_shared<ComputeUse>(lay_out(graph, ggml_backend_get_default_buffer_type(placement.runtime_backend)));
    use->pool = pool_bytes(graph);
    uses.resize(std::min(uses.size(), most_compute_uses - 1));
    uses.emplace(uses.begin(), shape, std::move(use));
    return uses.front().second;
}

uint64_t compute_bytes(const Placement& placement, const ComputeUse& use) {
    const Device& device = *placement.runtime;
    const bool pools = is_one_of(pool_backends, device.dev);
    return use.buffer + (pools ? pool_base + std::max(device.pool_bytes, use.pool) : 0);
}

void note_computing(const Placement& placement, ggml_cgraph* graph) {
    if (placement.placements != nullptr && is_one_of(pool_backends, placement.runtime->dev)) {
        placement.runtime->pool_bytes = std::max(placement.runtime->pool_bytes, pool_bytes(graph));
    }
}

}  // namespace sdcpp
