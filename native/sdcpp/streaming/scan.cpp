#include "sdcpp/streaming/scan.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <unordered_map>

#include "ggml-impl.h"
#include "ggml_graph_cut.h"
#include "sdcpp/streaming/cost.h"

namespace sdcpp {

namespace {

constexpr uint64_t small_share = 2048;      // a weight of less than this part of all is not worth a copy ...
constexpr uint64_t small_most = 64 * 1024;  // ... when it is also smaller than this
constexpr uint64_t segment_share = 2048;    // segments are this part of all weights, or one weight
constexpr size_t most_scans = 16;           // that are remembered
constexpr double lendable_share = 0.95;     // of the compute buffer: the next one may be a little smaller

// Notes how a graph uses its compute buffer.
void note_use(Scan& scan, std::shared_ptr<const ComputeUse> use) {
    scan.use = std::move(use);
    if (!scan.use->heights.empty()) {
        scan.lendable = static_cast<uint64_t>(lendable_share * static_cast<double>(scan.use->buffer));
    }
}

// Notes where the compute buffer is free while each segment is computed.
void note_heights(Scan& scan, const ggml_cgraph* graph) {
    const std::vector<uint64_t>& heights = scan.use->heights;
    for (size_t i = 0; i < scan.segments.size() && !heights.empty(); ++i) {
        const int end = i + 1 < scan.begin.size() ? scan.begin[i + 1] : graph->n_nodes;
        uint64_t& height = scan.segments[i].height = 0;
        std::for_each(heights.begin() + scan.begin[i], heights.begin() + end,
                      [&](uint64_t its) { height = std::max(height, its); });
    }
}

// The part of a cut's name that says which layer ended there.
std::string cut_name(const ggml_tensor* node) {
    std::string name = node->name + std::strlen(sd::ggml_graph_cut::GGML_RUNNER_CUT_PREFIX);
    return name.substr(0, name.find('|'));
}

class Scanner {
public:
    Scanner(const std::string& runner, const WeightSet& params, ggml_cgraph* graph, ggml_backend_buffer_type_t type,
            std::shared_ptr<const ComputeUse> use)
        : params_(params), graph_(graph), type_(type), layer_names_{runner} {
        note_use(found_, std::move(use));
    }

    Scan scan() {
        find_uses();
        divide();
        note_heights(found_, graph_);
        name_segments();
        return std::move(found_);
    }

    // By the segments of a scan of more weights.
    std::optional<Scan> scan_part(const Scan& whole) {
        find_uses();
        std::vector<std::optional<Use>> read(whole.segments.size());
        size_t known = 0;
        for (size_t i = 0; i < whole.weights.size(); ++i) {
            const auto use = uses_.find(whole.weights[i]);
            known += use != uses_.end() ? 1 : 0;
            if (use != uses_.end() && whole.segment_of[i] >= 0) {
                std::optional<Use>& all = read[static_cast<size_t>(whole.segment_of[i])];
                all = Use{std::min(all ? all->first : use->second.first, use->second.first),
                          std::max(all ? all->last : 0, use->second.last), 0};
            }
        }
        if (known < uses_.size() || !follows(read)) {
            return std::nullopt;
        }
        found_.weights = whole.weights;
        found_.segment_of = whole.segment_of;
        found_.segments = whole.segments;
        found_.fixed_bytes = whole.fixed_bytes;
        found_.begin.assign(read.size(), 0);
        auto end = static_cast<int>(node_count());
        for (size_t i = read.size(); i-- > 1;) {
            end = found_.begin[i] = read[i] ? static_cast<int>(read[i]->first) : end;
        }
        for (size_t segment = 0, i = 0; segment < read.size(); ++segment) {
            found_.segments[segment].cost = 0.0;
            const size_t stop = segment + 1 < read.size() ? static_cast<size_t>(found_.begin[segment + 1]) : node_count();
            for (; i < stop; ++i) {
                found_.segments[segment].cost += computes(graph_->nodes[i]) ? cost_of(graph_->nodes[i]) : 0.0;
            }
        }
        note_heights(found_, graph_);
        return std::move(found_);
    }

private:
    // A weight's nodes and bytes.
    struct Use {
        size_t first = 0;
        size_t last = 0;
        uint64_t bytes = 0;
    };

    size_t node_count() const { return static_cast<size_t>(graph_->n_nodes); }

    // Tells whether what is read of each segment is read before what is read of the next one.
    template <typename Uses>
    static bool follows(const Uses& read) {
        std::optional<size_t> last;
        for (const auto& use : read) {
            if (use && last && use->first <= *last) {
                return false;
            }
            last = use ? use->last : last;
        }
        return true;
    }

    // Finds the layers, and which nodes read each weight.
    void find_uses() {
        layer_.assign(node_count() + 1, 0);
        for (size_t i = 0; i < node_count(); ++i) {
            ggml_tensor* node = graph_->nodes[i];
            layer_[i + 1] = layer_[i];
            if (sd::ggml_graph_cut::is_graph_cut_tensor(node)) {
                layer_names_.back() = cut_name(node);
                layer_names_.push_back("final");
                ++layer_[i + 1];
            }
            if (!computes(node)) {
                continue;
            }
            for (ggml_tensor* source : node->src) {
                if (source != nullptr) {
                    add_use(source->view_src != nullptr ? source->view_src : source, i);
                }
            }
        }
        small_ = std::min(small_most, total_ / small_share);
    }

    void add_use(ggml_tensor* weight, size_t node) {
        if (params_.count(weight) == 0) {
            return;
        }
        const auto [use, added] = uses_.try_emplace(weight, Use{node, node, 0});
        use->second.last = node;
        if (added) {
            use->second.bytes = padded_size(type_, weight);
            total_ += use->second.bytes;
            found_.weights.push_back(weight);
        }
    }

    // Small weights and those that two layers read are resident in any case.
    bool is_fixed(const Use& use) const { return use.bytes < small_ || layer_[use.first] != layer_[use.last]; }

    void add_segment(size_t begin) {
        found_.segments.emplace_back();
        found_.segments.back().copies = 0;
        found_.begin.push_back(static_cast<int>(begin));
    }

    // Divides the graph into segments, none of which begins where a weight is still in use.
    void divide() {
        std::vector<int> uses_begun(node_count() + 1);  // before each node, less those that have ended
        std::vector<bool> starts(node_count());         // whether a weight's use begins with a node ...
        std::vector<uint64_t> starting(node_count());   // ... and the bytes of such weights
        for (const ggml_tensor* weight : found_.weights) {
            const Use& use = uses_[weight];
            if (is_fixed(use)) {
                found_.fixed_bytes += use.bytes;
            } else {
                ++uses_begun[use.first + 1];
                --uses_begun[use.last + 1];
                starts[use.first] = true;
                starting[use.first] += use.bytes;
            }
        }
        const uint64_t enough = total_ / segment_share;
        std::vector<int> segment_at(node_count());
        int in_use = 0;
        add_segment(0);
        for (size_t i = 0; i < node_count(); ++i) {
            in_use += uses_begun[i];
            const uint64_t bytes = found_.segments.back().bytes;
            const auto begin = static_cast<size_t>(found_.begin.back());
            // A kernel may add a bias itself, which has to be so wherever the weights lie.
            const bool sums = graph_->nodes[i]->op == GGML_OP_ADD;
            if (starts[i] && !sums && in_use == 0 && bytes > 0 && (bytes >= enough || layer_[i] != layer_[begin])) {
                add_segment(i);
            }
            segment_at[i] = static_cast<int>(found_.segments.size()) - 1;
            found_.segments.back().bytes += starting[i];
            add_node(i);
        }
        for (const ggml_tensor* weight : found_.weights) {
            const Use& use = uses_[weight];
            found_.segment_of.push_back(is_fixed(use) ? -1 : segment_at[use.first]);
            if (!is_fixed(use)) {
                ++found_.segments[static_cast<size_t>(found_.segment_of.back())].copies;
            }
        }
    }

    // Adds what computing a node takes to the last segment.
    void add_node(size_t node) {
        Segment& segment = found_.segments.back();
        if (computes(graph_->nodes[node])) {
            segment.cost += cost_of(graph_->nodes[node]);
        }
    }

    // Names each segment after its layer, with a number where there are several.
    void name_segments() {
        // The layer of the segment's first weight, which is what the segment is about.
        const auto layer_of = [&](size_t segment) { return layer_[static_cast<size_t>(found_.begin[segment])]; };
        int number = 0;
        for (size_t i = 0; i < found_.segments.size(); ++i) {
            number = i > 0 && layer_of(i) == layer_of(i - 1) ? number + 1 : 1;
            const bool several = number > 1 || (i + 1 < found_.segments.size() && layer_of(i + 1) == layer_of(i));
            found_.segments[i].name = layer_names_[layer_of(i)] + (several ? "/" + std::to_string(number) : "");
        }
    }

    const WeightSet& params_;
    ggml_cgraph* const graph_;
    ggml_backend_buffer_type_t const type_;
    std::vector<std::string> layer_names_;
    std::vector<size_t> layer_;  // of each node: how many cuts are before it
    std::unordered_map<const ggml_tensor*, Use> uses_;
    uint64_t total_ = 0;
    uint64_t small_ = 0;  // a weight of fewer bytes is fixed
    Scan found_;
};

}  // namespace

uint64_t Scan::weight_bytes() const {
    return std::accumulate(segments.begin(), segments.end(), fixed_bytes,
                           [](uint64_t bytes, const Segment& segment) { return bytes + segment.bytes; });
}

double Scan::cost() const {
    return std::accumulate(segments.begin(), segments.end(), 0.0,
                           [](double cost, const Segment& segment) { return cost + segment.cost; });
}

bool Scan::needs_more_buffer(const Scan& other) const {
    for (size_t i = 0; i < segments.size(); ++i) {
        if (segments[i].height > other.segments[i].height) {
            return true;
        }
    }
    return false;
}

void Scan::lend_no_more_than(const Scan& other) {
    lendable = std::min(lendable, other.lendable);
    for (size_t i = 0; i < segments.size(); ++i) {
        segments[i].height = std::max(segments[i].height, other.segments[i].height);
    }
}

std::pair<uint64_t, uint64_t> Scan::values(size_t segment) const {
    if (use->values.empty()) {
        return {0, 0};
    }
    const auto first = use->values.begin() + begin[segment];
    const auto end = segment + 1 < begin.size() ? use->values.begin() + begin[segment + 1] : use->values.end();
    if (first == end) {
        return {0, 0};
    }
    const auto [least, most] = std::minmax_element(first, end);
    return {*least, *most};
}

uint64_t padded_size(ggml_backend_buffer_type_t type, const ggml_tensor* tensor) {
    return GGML_PAD(ggml_backend_buft_get_alloc_size(type, tensor), ggml_backend_buft_get_alignment(type));
}

Scan scan_lanes(const std::vector<Scan>& lanes, const ggml_cgraph* merged, std::shared_ptr<const ComputeUse> use) {
    Scan all = lanes.front();
    note_use(all, std::move(use));
    for (size_t lane = 1; lane < lanes.size(); ++lane) {
        for (size_t i = 0; i < all.segments.size(); ++i) {
            all.begin[i] += lanes[lane].begin[i];
            all.segments[i].cost += lanes[lane].segments[i].cost;
        }
    }
    note_heights(all, merged);
    return all;
}

Scan scan_graph(const std::string& runner, const WeightSet& params, ggml_cgraph* graph, ggml_backend_buffer_type_t type,
                std::shared_ptr<const ComputeUse> use) {
    return Scanner(runner, params, graph, type, use).scan();
}

std::optional<Scan> scan_part(const Scan& whole, const WeightSet& params, ggml_cgraph* graph,
                              ggml_backend_buffer_type_t type, std::shared_ptr<const ComputeUse> use) {
    return Scanner("", params, graph, type, std::move(use)).scan_part(whole);
}

Scan Scans::of(const std::string& runner, const WeightSet& params, ggml_cgraph* graph, ggml_backend_buffer_type_t type,
               std::shared_ptr<const ComputeUse> use) {
    const uint64_t key = shape_of(graph, true);
    const auto known = std::find_if(known_.begin(), known_.end(), [&](const auto& scan) { return scan.first == key; });
    if (known == known_.end()) {
        known_.resize(std::min(known_.size(), most_scans - 1));
        known_.emplace(known_.begin(), key, scan_graph(runner, params, graph, type, std::make_shared<ComputeUse>()));
    } else {
        std::rotate(known_.begin(), known, known + 1);
    }
    Scan scan = known_.front().second;
    note_use(scan, std::move(use));
    note_heights(scan, graph);
    return scan;
}

}  // namespace sdcpp
