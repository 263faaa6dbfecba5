// What a graph reads of a network's weights, in the order of computing, divided into segments.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "sdcpp/streaming/compute_use.h"
#include "sdcpp/streaming/stream_plan.h"

namespace sdcpp {

using WeightSet = std::unordered_set<const ggml_tensor*>;

struct Scan {
    std::shared_ptr<const ComputeUse> use;
    uint64_t lendable = 0;              // bytes of the compute buffer, from its begin, in which slots may lie
    std::vector<ggml_tensor*> weights;  // in the order in which they are first read
    std::vector<int> segment_of;        // for each weight; -1: fixed, resident in any case
    std::vector<Segment> segments;
    std::vector<int> begin;  // first node of each segment
    uint64_t fixed_bytes = 0;

    // Returns what all the weights take on the device.
    uint64_t weight_bytes() const;
    // Returns what computing takes (streaming/cost.h).
    double cost() const;
    bool same_weights(const Scan& other) const { return weights == other.weights && segment_of == other.segment_of; }
    // Tells whether a segment leaves less of the compute buffer free than in another scan of the same weights.
    bool needs_more_buffer(const Scan& other) const;
    // Lends no more of the compute buffer than another scan of the same weights does.
    void lend_no_more_than(const Scan& other);
    // Returns what the compute buffer holds at least and at most while a segment is computed, in bytes.
    std::pair<uint64_t, uint64_t> values(size_t segment) const;
};

// Returns the bytes that a tensor takes in a buffer, with the padding to the next one.
uint64_t padded_size(ggml_backend_buffer_type_t type, const ggml_tensor* tensor);

// Returns the scan of a graph that was merged of others with these scans, of which each segment is read by all of them.
Scan scan_lanes(const std::vector<Scan>& lanes, const ggml_cgraph* merged, std::shared_ptr<const ComputeUse> use);

// Returns how a graph that reads no more than another one's weights does it by the segments of that one, so that what
// was planned for that serves it as well: a segment of which it reads nothing has no nodes. Nothing where it reads other
// weights, or in another order.
std::optional<Scan> scan_part(const Scan& whole, const WeightSet& params, ggml_cgraph* graph,
                              ggml_backend_buffer_type_t type, std::shared_ptr<const ComputeUse> use);

// Scans a graph of the network `runner`, whose weights are `params` and would lie in buffers of a type, and which uses
// its compute buffer as `use` says.
Scan scan_graph(const std::string& runner, const WeightSet& params, ggml_cgraph* graph, ggml_backend_buffer_type_t type,
                std::shared_ptr<const ComputeUse> use);

// The scans of a network's last graphs, which are the same for every step.
class Scans {
public:
    // Returns the scan of a graph, as scan_graph does.
    Scan of(const std::string& runner, const WeightSet& params, ggml_cgraph* graph, ggml_backend_buffer_type_t type,
            std::shared_ptr<const ComputeUse> use);
    // Forgets them, as the weights are others.
    void forget() { known_.clear(); }

private:
    std::vector<std::pair<uint64_t, Scan>> known_;  // by what the graph does and reads, the last one first
};

}  // namespace sdcpp
