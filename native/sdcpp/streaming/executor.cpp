#include "sdcpp/streaming/executor.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "ggml-impl.h"
#include "sdcpp/streaming/test_hooks.h"

namespace sdcpp {

namespace {

constexpr uint64_t load_share = 16;  // the first graph is cut for copies of this part of all weights

ggml_cgraph nodes_of(ggml_cgraph* graph, const Launch& launch) {
    return ggml_graph_view(graph, launch.begin, launch.end);
}

}  // namespace

std::vector<Launch> launches(const Scan& scan, const StreamPlan& plan, std::vector<Weight>& weights,
                             const ggml_cgraph* graph, size_t parts) {
    const size_t segments = scan.segments.size();
    const size_t most = parts > 1 ? segments / parts + 1 : segments;  // in a launch
    size_t first = 0;                                                 // of the launch
    uint64_t total = 0;
    std::vector<uint64_t> to_load(segments);
    std::vector<std::vector<Weight*>> loads(segments);
    for (Weight& weight : weights) {
        total += weight.bytes;
        if (weight.resident() && !weight.loaded) {
            const auto segment = static_cast<size_t>(std::max(weight.segment, 0));
            to_load[segment] += weight.bytes;
            loads[segment].push_back(&weight);
        }
    }
    const auto node_of = [&](size_t segment) { return segment < segments ? scan.begin[segment] : graph->n_nodes; };
    std::vector<Launch> found;
    uint64_t loading = 0;
    size_t slot = 0;  // the next one
    bool inside = false;
    for (size_t i = 0; i < segments; ++i) {
        const bool enters = slot < plan.slots.size() && plan.slots[slot].segments.front() == i;
        const bool leaves = inside && plan.slots[slot - 1].segments.back() < i;
        if (found.empty() || enters || leaves ||
            (!inside && (i - first >= most || (loading > 0 && loading + to_load[i] > total / load_share)))) {
            found.emplace_back();
            first = i;
            found.back().begin = node_of(i);
            found.back().streamed = enters;
            loading = 0;
            inside = enters;
            slot += enters ? 1 : 0;
        }
        found.back().end = node_of(i + 1);
        found.back().loads.insert(found.back().loads.end(), loads[i].begin(), loads[i].end());
        loading += to_load[i];
    }
    return found;
}

void Executor::note_gap() {
    if (end_ > 0.0) {
        gap_seconds_[1] = std::exchange(gap_seconds_[0], std::max(0.0, now() - end_));
        end_ = 0.0;
    }
}

ggml_status Executor::compute(ggml_cgraph* graph, const std::vector<Launch>& launches, size_t parts,
                              size_t lanes, bool (*cancelled)()) {
    return queue_.overlaps() ? compute_overlapped(graph, launches, parts, lanes, cancelled)
                             : compute_in_turn(graph, launches, cancelled);
}

// Gives the device a launch, and a mark behind it when a slot is free from there on: once its last lane has been
// computed.
ggml_status Executor::give(ggml_cgraph* graph, const Launch& launch, size_t lanes, uint64_t filling) {
    ggml_cgraph nodes = nodes_of(graph, launch);
    if (!keeps("last lane") && launch.streamed && lanes > 1) {
        const int first = launch.begin + (launch.end - launch.begin) / static_cast<int>(lanes);
        ggml_cgraph one = ggml_graph_view(graph, launch.begin, first);
        ggml_backend_graph_compute_async(compute_, &one);
        queue_.mark_behind(filling);
        nodes = ggml_graph_view(graph, first, launch.end);
        return ggml_backend_graph_compute_async(compute_, &nodes);
    }
    const ggml_status status =
        launch.empty() ? GGML_STATUS_SUCCESS : ggml_backend_graph_compute_async(compute_, &nodes);
    if (status == GGML_STATUS_SUCCESS && launch.streamed) {
        queue_.mark_behind(filling);
    }
    return status;
}

ggml_status Executor::compute_overlapped(ggml_cgraph* graph, const std::vector<Launch>& launches, size_t parts,
                                         size_t lanes, bool (*cancelled)()) {
    const size_t ahead = std::max<size_t>(launches.size() / parts, 1);
    const auto count = static_cast<uint64_t>(plan_.slots.size());
    const bool loading =
        std::any_of(launches.begin(), launches.end(), [](const Launch& launch) { return !launch.loads.empty(); });
    // The host waits in the one graph that is measured, in none of the others.
    const bool measuring = !loading && stall_seconds_ < 0.0 && count > 0;
    double stalled = 0.0;
    const uint64_t end = queue_.next() + count;
    uint64_t launched = queue_.next();  // all fillings whose segments the device was given
    const auto can_issue = [&] {
        // Residents are copied in between, so that far ahead of them would be too early; and the next graph's compute
        // buffer is not there yet.
        const uint64_t number = queue_.issued();
        return number < (loading ? launched + 2 : end + count) && queue_.free_for(number, 2 * launched) &&
               (number < end || !queue_.slot(number).borrows);
    };
    const auto look_ahead = [&](double most = HUGE_VAL) {
        for (double bytes = 0.0; count > 0 && can_issue(); queue_.issue_until(queue_.issued() + 1)) {
            bytes += static_cast<double>(queue_.slot(queue_.issued()).bytes);
            if (bytes > most) {
                break;
            }
        }
    };
    if (!loading && queue_.pinned()) {
        look_ahead();
    }
    for (size_t i = 0; i < launches.size(); ++i) {
        const Launch& launch = launches[i];
        if (cancelled()) {
            return GGML_STATUS_ABORTED;
        }
        if (!launch.loads.empty()) {
            queue_.load(launch.loads);
        }
        if (launch.streamed) {
            queue_.mark_before(launched);
            queue_.issue_until(launched + 1);
            if (measuring) {
                ggml_backend_synchronize(compute_);
                const double begin = now();
                queue_.host_wait_for(launched);
                stalled += now() - begin;
            }
            queue_.wait_for(launched);
        }
        const ggml_status status = give(graph, launch, lanes, launched);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        launched += launch.streamed ? 1 : 0;
        if (i + 1 < launches.size() && launches[i + 1].streamed) {
            look_ahead();
        }
        if (parts > 1 && (i + 1) % ahead == 0) {
            ggml_backend_synchronize(compute_);
        }
    }
    if (measuring) {
        queue_.synchronize();
        ggml_backend_synchronize(compute_);
        stall_seconds_ = stalled;
        uint64_t bytes = 0;
        const double begin = now();
        for (; can_issue(); queue_.issue_until(queue_.issued() + 1)) {
            bytes += queue_.slot(queue_.issued()).bytes;
        }
        queue_.synchronize();
        queue_.note_rate_of_fillings(bytes, now() - begin);
    }
    // The next graph begins with these. What is copied for longer than the host takes until then would hold up the
    // graph's inputs, which are copied behind it.
    // Of weights on disk the ring is filled meanwhile, and there may be no next graph.
    look_ahead(queue_.reads()    ? 0.0
               : queue_.pinned() ? std::min(gap_seconds_[0], gap_seconds_[1]) * queue_.rate()
                                 : HUGE_VAL);
    ggml_backend_synchronize(compute_);
    queue_.advance(count);
    queue_.record_seconds();
    end_ = now();
    return GGML_STATUS_SUCCESS;
}

ggml_status Executor::compute_in_turn(ggml_cgraph* graph, const std::vector<Launch>& launches, bool (*cancelled)()) {
    double copying = 0.0;
    uint64_t number = queue_.next();
    for (const Launch& launch : launches) {
        if (cancelled()) {
            return GGML_STATUS_ABORTED;
        }
        const double begin = now();
        queue_.load(launch.loads);
        if (launch.streamed) {
            queue_.issue(number++);
            copying += now() - begin;
        }
        ggml_cgraph nodes = nodes_of(graph, launch);
        const ggml_status status =
            launch.empty() ? GGML_STATUS_SUCCESS : ggml_backend_graph_compute(compute_, &nodes);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    if (copying > 0.0) {
        stall_seconds_ = copying;
        queue_.note_rate(plan_.streamed_bytes, copying);
    }
    queue_.advance(plan_.slots.size());
    return GGML_STATUS_SUCCESS;
}

}  // namespace sdcpp
