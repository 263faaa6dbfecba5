// The inside of streaming: a context's budget of device memory and the streamer of each runner.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "ggml-backend-impl.h"
#include "sdcpp/streaming/compute_use.h"
#include "ggml-cpp.h"
#include "sdcpp/api/sdcpp.h"
#include "sdcpp/streaming/stream_plan.h"

namespace sdcpp {

#ifdef SDCPP_TEST_BACKEND
// The clock for all that is measured here, where a test gives one.
extern double (*stream_clock)();
// Leaves out one precaution where a test asks for it, to see that the mistake is found.
bool keeps(const char* precaution);
#else
constexpr bool keeps(const char*) {
    return true;
}
#endif

// Tells whether a device belongs to one of some backends.
template <size_t count>
bool is_one_of(const char* const (&names)[count], ggml_backend_dev_t dev) {
    const std::string name = ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev));
    return std::any_of(names, names + count, [&](const char* known) { return name == known; });
}

class Placements;
class Streamer;
struct Device;
struct Placement;

// Who of a context holds device memory, and how much there may be.
class StreamBudget {
public:
    float max_vram = 0.0f;  // GiB; negative: free memory minus that; 0: free memory minus a reserve
    std::vector<Streamer*> streamers;
    // What runners hold besides weights and what streamers know of: compute buffers and the like, in bytes.
    std::map<ggml_backend_dev_t, uint64_t> others;

    // Returns the device memory that the context may use, in bytes.
    uint64_t bytes(ggml_backend_dev_t dev, const Placements& placements) const;
    // Returns what the context holds on a device without all that can yield.
    uint64_t fixed(ggml_backend_dev_t dev, const Placements& placements) const;
    // Frees what runners that compute nothing now keep on a device, until `wanted` more bytes fit into the budget.
    void yield(ggml_backend_dev_t dev, const Placements& placements, uint64_t wanted, const Streamer* self = nullptr);
    // Lets runners that compute in turn with `self` keep less by that many bytes, or as much as they can.
    void shrink(ggml_backend_dev_t dev, uint64_t bytes, const Streamer* self);
    // Returns what the context holds on a device without `self`: weights that live there, and runners' memory.
    uint64_t held(ggml_backend_dev_t dev, const Placements& placements, const Streamer* self = nullptr) const;
    // Starts a generation: nothing is bound, and the statistics begin anew.
    void begin();
};

// Holds the weights of one runner on the device and streams those that do not fit.
class Streamer {
public:
    explicit Streamer(Placement& owner);
    ~Streamer();
    Streamer(const Streamer&) = delete;
    Streamer& operator=(const Streamer&) = delete;

    bool prepare(const std::string& runner, ggml_context* params, ggml_cgraph* graph);
    // Throws NoRoom when a graph will not fit, once all others have yielded.
    void check(const std::string& runner, ggml_context* params, ggml_cgraph* graph);
    void bind(uint64_t compute_bytes);
    bool bound() const { return bound_; }
    bool active() const { return active_; }
    ggml_status compute(ggml_cgraph* graph, bool (*cancelled)());
    void unbind();
    // Plans anew with that many bytes less, or the least that works, and returns what that saves.
    uint64_t shrink(uint64_t bytes);
    // Frees residents of that many bytes, the graph's last ones first, or all device memory. For a streamer that is not
    // active.
    void give_up(uint64_t bytes);
    // Frees all device memory.
    void release();
    // Device memory held now or, while active, at the next graph: the arena and the compute buffer.
    uint64_t held() const;
    ggml_backend_dev_t dev() const;
    // Starts a generation: a failed one may have left the weights bound.
    void begin();
    // Describes the last plan; the pointers hold until the next call on this thread. False when there is none.
    bool describe(sdcpp_stream_t* row) const;
    // What the last graph was divided into.
    const std::vector<Segment>& segments() const { return scan_.segments; }
    // What its compute buffer holds at least and at most while a piece is computed, in bytes.
    std::pair<uint64_t, uint64_t> values(size_t piece) const;

private:
    struct Weight {
        ggml_tensor* tensor = nullptr;
        ggml_tensor host = {};         // where it is in host memory, while bound
        ggml_tensor* place = nullptr;  // where it is on the device
        uint64_t bytes = 0;            // on the device, aligned
        int piece = -1;                // -1: fixed
        int segment = -1;              // -1: resident
        size_t part = 0;               // of the arena, when resident
        uint64_t offset = 0;           // in that, or in its slot
        bool borrows = false;          // that lies in the compute buffer
        bool loaded = false;

        // Gives the engine's tensor the address of another one.
        void lie_at(const ggml_tensor& where) const {
            tensor->buffer = where.buffer;
            tensor->data = where.data;
            tensor->extra = where.extra;
        }
    };

    // Device memory for the slots, which comes first, or for some residents.
    struct Part {
        uint64_t bytes = 0;
        ggml_backend_buffer_ptr buffer;  // NULL: given up
    };

    // One copy into a slot.
    struct Copy {
        ggml_tensor* target = nullptr;
        uint64_t begin = 0;  // bytes from the begin of the slot
        uint64_t end = 0;
        const char* source = nullptr;
        bool whole = false;  // not to be copied in parts
    };

    // What a graph reads, in order.
    struct Scan {
        const ComputeUse* use = nullptr;
        uint64_t lendable = 0;      // bytes of the compute buffer, from its begin, in which slots may lie
        std::vector<ggml_tensor*> weights;
        std::vector<int> piece_of;  // for each weight, -1: fixed
        std::vector<Segment> segments;
        std::vector<int> begin;     // first node of each piece
        uint64_t fixed_bytes = 0;
        uint64_t weight_bytes() const {
            return std::accumulate(segments.begin(), segments.end(), fixed_bytes,
                                   [](uint64_t bytes, const Segment& segment) { return bytes + segment.bytes; });
        }
        bool same_weights(const Scan& other) const { return weights == other.weights && piece_of == other.piece_of; }
    };

    // Nodes that are given to the device at once.
    struct Run {
        int begin = 0;
        int end = 0;
        int segment = -1;           // its weights must have arrived
        std::vector<size_t> loads;  // residents that are copied for it
    };

    void meet(const std::string& runner, ggml_context* params);
    Scan scan(ggml_cgraph* graph, const ComputeUse& computing) const;
    StreamInput input(const Scan& scan, uint64_t compute_bytes, uint64_t room) const;
    [[noreturn]] void refuse(uint64_t needed, uint64_t compute_bytes, uint64_t budget) const;
    uint64_t wanted() const;
    bool seldom() const;
    uint64_t alloc_size(const ggml_tensor* tensor) const;
    void plan(uint64_t room);
    bool alloc_arena();
    bool fill_arena();
    void drop_arena();
    void forget_arena();
    void restore();
    std::vector<Run> runs(int nodes) const;
    bool borrow(ggml_cgraph* graph);
    void give_back();
    void follow(ggml_cgraph* graph);
    void open_streams();
    void take_turns(const char* why);

    void make_events();
    std::vector<Copy> copies_of(int segment, const std::function<void(ggml_tensor*, uint64_t)>& put);
    void note_rate(uint64_t bytes, double seconds);
    void copy(ggml_tensor* target, const char* source, uint64_t offset, uint64_t bytes);
    void load(const Run& run);
    void issue(uint64_t number);
    void issue_until(uint64_t number);
    bool free_for(uint64_t number, uint64_t given) const;
    ggml_status compute_overlapped(ggml_cgraph* graph, bool (*cancelled)());
    ggml_status compute_in_turn(ggml_cgraph* graph, bool (*cancelled)());
    void drain();
    size_t index(uint64_t number) const { return static_cast<size_t>(number % plan_.slots.size()); }
    static uint64_t mark_behind(uint64_t number) { return 2 * number + 1; }
    ggml_backend_event_t mark(uint64_t number) const { return marks_[number % marks_.size()].get(); }

    Placement& owner_;
    std::string runner_;
    ggml_backend_t compute_ = nullptr;  // streams
    ggml_backend_t copy_ = nullptr;     // NULL: no overlap
    ggml_backend_buffer_type_t type_ = nullptr;
    bool opened_ = false;
    std::string reason_;

    std::unordered_set<const ggml_tensor*> params_;
    ggml_context* params_ctx_ = nullptr;
    Scan scan_;
    uint64_t compute_bytes_ = 0;   // planned
    uint64_t largest_ = 0;         // that a graph of this generation takes
    uint64_t largest_before_ = 0;  // ... of the one before, whose graphs are expected again
    StreamPlan plan_;
    bool planned_ = false;
    uint64_t budget_ = 0;
    uint64_t room_ = 0;
    uint64_t changes_ = 0;

    std::vector<Weight> weights_;
    std::vector<Part> arena_;
    ggml_context_ptr places_;
    ggml_backend_buffer_ptr zeros_;
    ggml_backend_buffer borrowed_ = {};  // the compute buffer, as one of weights
    char* base_ = nullptr;               // where it begins in the addresses of slots that lie in it; at first anywhere
    bool borrows_ = true;                // slots may lie there
    bool pinned_ = false;
    bool bound_ = false;
    bool active_ = false;               // between the first and the last graph that are computed in turn with others'
    uint64_t most_ = UINT64_MAX;        // that it may hold, so that those have room
    uint64_t held_compute_bytes_ = 0;   // until the engine frees it

    // Streamed segments are numbered through all graphs since the last drain.
    uint64_t next_ = 0;    // the first one of the graph that comes
    uint64_t issued_ = 0;  // all before it are copied or being copied
    std::vector<std::vector<Copy>> copies_;         // of each segment
    std::vector<ggml_backend_event_ptr> arrived_;  // of each segment
    std::vector<ggml_backend_event_ptr> marks_;    // see stream_plan.h; NULL: nobody waits for it
    ggml_backend_event_ptr loaded_;

    // Statistics.
    uint64_t passes_ = 0;
    uint64_t timed_passes_ = 0;
    double seconds_ = 0.0;
    double copy_rate_ = 0.0;  // bytes per second; 0: not measured
    uint64_t timed_bytes_ = 0;  // that it was measured on
    uint64_t untimed_ = 0;      // bytes that were copied meanwhile, whose seconds are not in the book yet
    double stall_seconds_ = -1.0;
    double end_ = 0.0;          // when the last graph ended; 0: not known
    double gap_seconds_[2] = {};  // what the host took from then to the next one, the last two times
    uint64_t peak_ = 0;
    bool loading_ = false;
};

}  // namespace sdcpp
