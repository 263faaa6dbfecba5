// Holds the weights of one network on its device and streams those that do not fit.
//
// The words of this folder:
//   cut        where the engine says that a graph may be divided
//   layer      the nodes between two cuts
//   segment    a run of nodes, a layer or a part of one, with the weights that it needs: these stay on the device or
//   are
//              streamed as one
//   resident   a weight, or a segment of them, that stays on the device; it is loaded once
//   fixed      a weight that is resident in any case, since it is small or several layers read it
//   streamed   a segment whose weights are copied in for each graph
//   slot       a place on the device for one or more streamed segments, which follow one another; each graph fills each
//              slot once, and slots share memory
//   part       of a slot: bytes that become free at once
//   mark       what the device passes before and behind the segments of a slot
//   arena      all of a network's memory on the device for weights: a block for the slots, and blocks of residents
//   launch     nodes that are given to the device at once
//
// What happens to memory:
//   bind       weights get their addresses on the device; unbind: their addresses in host memory again
//   borrow     a slot lies in the compute buffer, where that holds no values meanwhile
//   active     from when a graph is bound until its compute buffer is freed; else a network is idle
//   evict      free residents of an idle network, the graph's last ones first; they are loaded again when it is
//   computed make room  evict what idle networks keep, as far as another one wants their memory shrink     let an
//   active network plan anew, with less release    free all of an idle network's memory drain      wait until nothing
//   is copied or computed, and forget what was copied ahead
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ggml-backend.h"
#include "ggml.h"
#include "sdcpp/api/sdcpp.h"
#include "sdcpp/streaming/arena.h"
#include "sdcpp/streaming/compute_use.h"
#include "sdcpp/streaming/copy_queue.h"
#include "sdcpp/streaming/executor.h"
#include "sdcpp/streaming/lane_choice.h"
#include "sdcpp/streaming/report.h"
#include "sdcpp/streaming/scan.h"
#include "sdcpp/streaming/stream_plan.h"

namespace sdcpp {

class MemoryBudget;
struct Placement;

class Streamer {
public:
    // For the runner that was placed so; its devices are known already.
    explicit Streamer(Placement& owner);
    ~Streamer();
    Streamer(const Streamer&) = delete;
    Streamer& operator=(const Streamer&) = delete;

    // Throws NoRoom when a graph of the network `runner`, whose weights are in `params`, will not fit, even once all
    // others are evicted.
    void check(const std::string& runner, ggml_context* params, ggml_cgraph* graph);
    // Plans for a graph, and frees what the plan has no room for; false when the plan is new. Throws NoRoom.
    bool prepare(const std::string& runner, ggml_context* params, ggml_cgraph* graph);
    // Tells whether the last graph can be computed again as it is: its plan holds, and all is where it was.
    bool holds() { return active_ && bound_ && planned_ && plan_holds(compute_bytes_); }

    // --- passes that could be lanes of one graph

    // Returns how a graph of one pass reads the weights.
    Scan scan_pass(const std::string& runner, ggml_context* params, ggml_cgraph* graph);
    // Returns how a graph reads no more than another one's weights, by the segments of that one; nothing where it does.
    std::optional<Scan> scan_part(const Scan& whole, ggml_cgraph* graph) const;
    // Returns how many of some passes, one of which has a graph of this shape, are computed as lanes of one; if that is
    // known.
    LaneChoice known_lanes(uint64_t shape, size_t passes);
    // Plans for `passes` passes that read the same weights, of which the first ones have these graphs, in some numbers
    // of lanes, and chooses the fastest. Graphs that are tried are made in `tensors`.
    LaneChoice choose_lanes(const std::vector<ggml_cgraph*>& graphs, const std::vector<Scan>& scans,
                            size_t passes, const std::vector<size_t>& counts, ggml_context* tensors);
    // Says why passes were not lanes.
    void say_of_lanes(const std::string& reason) { report_.set_lanes_reason(reason); }

    // Allocates the arena and binds the weights; throws NoRoom.
    void bind(uint64_t compute_bytes);
    ggml_status compute(ggml_cgraph* graph, bool (*cancelled)());
    // Unbinds the weights, once the compute buffer is freed.
    void deactivate();
    bool bound() const { return bound_; }
    bool active() const { return active_; }

    // Returns the device memory that it holds or, while active, will hold at the next graph: the arena and the compute
    // buffer.
    uint64_t held() const;
    ggml_backend_dev_t dev() const;
    // Frees residents of that many bytes or, where those are too few, everything. Only while idle.
    void evict(uint64_t bytes);
    // Plans anew with that many bytes less, or the least that works, and returns what that saves; 0 while idle.
    uint64_t shrink(uint64_t bytes);
    // Frees all device memory.
    void release();

    // Waits for the copies that the device was given.
    void finish_copies() { queue_.synchronize(); }
    // Starts a generation: a failed one may have left the weights bound.
    void begin_generation();
    // Describes the last plan; the text lasts until the next call on this thread. False when there is none.
    bool describe(sdcpp_stream_t* row) const;
    // What the last graph read.
    const Scan& scan() const { return scan_; }

private:
    MemoryBudget& budget() const;
    void get_to_know(const std::string& runner, ggml_context* params);
    void reload_changed_weights();
    bool plan_holds(uint64_t compute_bytes);
    void replan(uint64_t compute_bytes, bool same);
    uint64_t expected_compute(uint64_t compute_bytes) const;
    StreamInput input(const Scan& scan, uint64_t compute_bytes, uint64_t room) const;
    Scan scan_of(ggml_cgraph* graph, std::shared_ptr<const ComputeUse> use);
    uint64_t room_for_lanes() const;
    void plan(uint64_t room);
    uint64_t room_beside(uint64_t others) const;
    uint64_t wanted_bytes() const;
    bool is_computed_seldom() const;
    bool alloc_arena();
    void alloc_arena_or_less();
    void unbind();
    void stop_borrowing(ggml_cgraph* graph);
    void update_views(ggml_cgraph* graph) const;
    void take_turns(const char* why);
    std::string device_name() const;

    Placement& owner_;
    std::string runner_;
    WeightSet params_;
    ggml_context* params_ctx_ = nullptr;
    uint64_t seen_changes_ = 0;  // of the weights' values, which the residents have

    Scans scans_;
    Scan scan_;
    StreamPlan plan_;
    bool planned_ = false;
    uint64_t budget_ = 0;              // of the context, when this network became active
    uint64_t room_ = 0;                // that was planned with
    uint64_t ceiling_ = UINT64_MAX;    // what it may hold since it was shrunk
    uint64_t compute_bytes_ = 0;       // that was planned with
    uint64_t largest_compute_ = 0;     // that a graph of this generation takes
    uint64_t largest_before_ = 0;      // ... of the one before, whose graphs are expected again
    uint64_t held_compute_bytes_ = 0;  // until the engine frees it
    size_t lanes_ = 1;                 // of the graph that is computed
    size_t largest_lanes_ = 1;         // of any in this generation
    size_t lanes_before_ = 1;          // ... in the one before
    LaneChoices choices_;
    bool may_borrow_ = true;
    bool bound_ = false;
    bool active_ = false;

    Arena arena_;
    CopyQueue queue_;
    Executor executor_;
    Report report_;
};

}  // namespace sdcpp
