// Streams weights: what a graph reads, where that lies on the device, and the order of copies and computations.
#include "sdcpp/streaming/streaming.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "ggml-backend-impl.h"
#include "../stable-diffusion.cpp/ggml/src/ggml-impl.h"
#include "sdcpp/streaming/compute_use.h"
#include "ggml-alloc.h"
#include "ggml_graph_cut.h"
#include "sdcpp/placement/placement_impl.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/streamer.h"
#include "util.h"

namespace sdcpp {

#ifdef SDCPP_TEST_BACKEND
double (*stream_clock)() = nullptr;

bool keeps(const char* precaution) {
    static const char* const left_out = std::getenv("SDCPP_LEAVE_OUT");
    return left_out == nullptr || std::strcmp(left_out, precaution) != 0;
}
#endif

namespace {

constexpr double gib = 1024.0 * 1024.0 * 1024.0;
constexpr double free_share = 0.1;              // kept free when no budget is given, of the device's memory ...
constexpr double free_most = 1.0 * gib;         // ... but not more than this
constexpr uint64_t small_share = 2048;          // a weight of less than this part of all is not worth a copy ...
constexpr uint64_t small_most = 64 * 1024;      // ... when it is also smaller than this
constexpr uint64_t segment_share = 2048;          // pieces are this part of all weights, or one weight
constexpr uint64_t load_share = 16;             // the first graph is cut for copies of this part of all weights
constexpr double copy_seconds = 10e-6;          // what a copy takes besides its bytes
constexpr double launch_seconds = 10e-6;        // what giving one more stretch of a graph to the device takes
constexpr uint64_t part_share = 8;              // residents are given up in parts of this share of them
constexpr uint64_t seldom_share = 32;           // what a network that is computed seldom takes others' memory for
constexpr uint64_t merge_factor = 8;            // merging takes this times a weight: f32 copies of it and of the change
constexpr double lendable_share = 0.95;         // of the compute buffer: the next one may be a little smaller
constexpr uint64_t enough_to_time = 8 << 20;    // bytes from which on copying them tells the bus's speed
constexpr double arena_shrink = 0.85;           // after a refusal
constexpr double budget_worth_a_plan = 1.05;    // growth for which a plan is made anew

// What a computation costs next to another one: seconds on a mid-range card, of which only ratios matter here.
constexpr double flop_rate = 25e12;
constexpr double memory_rate = 360e9;
constexpr double operation_seconds = 2e-6;  // what each takes to begin

// Backends that store the bytes of a tensor as they are: parts of tensors, and neighbours at once, can be copied.
const char* const plain_backends[] = {"CUDA", "ROCm", "MUSA", "Vulkan", "Loopback"};

bool computes(const ggml_tensor* node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return false;
        default:
            return !ggml_is_empty(node);
    }
}

double bytes_of(const ggml_tensor* tensor) {
    return static_cast<double>(ggml_row_size(tensor->type, tensor->ne[0])) * static_cast<double>(ggml_nrows(tensor));
}

double cost_of(const ggml_tensor* node) {
    const auto elements = static_cast<double>(ggml_nelements(node));
    const ggml_tensor* a = node->src[0];
    switch (node->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            return 2.0 * static_cast<double>(a->ne[0]) * elements / flop_rate;
        case GGML_OP_CONV_2D:
            return 2.0 * static_cast<double>(a->ne[0] * a->ne[1] * a->ne[2]) * elements / flop_rate;
        case GGML_OP_FLASH_ATTN_EXT:
            return 2.0 * static_cast<double>(a->ne[1] * a->ne[2] * a->ne[3] * node->src[1]->ne[1]) *
                   static_cast<double>(node->src[1]->ne[0] + node->src[2]->ne[0]) / flop_rate;
        case GGML_OP_GET_ROWS:
            return 2.0 * bytes_of(node) / memory_rate;
        default:
            break;
    }
    // Of these a source is not read: the kernel, which is there for its shape, or the destination.
    const bool im2col = node->op == GGML_OP_IM2COL || node->op == GGML_OP_IM2COL_3D;
    const int unread = im2col ? 0 : node->op == GGML_OP_CPY ? 1 : -1;
    double bytes = bytes_of(node);
    for (int i = 0; i < GGML_MAX_SRC && node->src[i] != nullptr; ++i) {
        bytes += i != unread ? bytes_of(node->src[i]) : 0.0;
    }
    return bytes / memory_rate;
}

// The part of a cut's name that says which layer ended there.
std::string cut_name(const ggml_tensor* node) {
    std::string name = node->name + std::strlen(sd::ggml_graph_cut::GGML_RUNNER_CUT_PREFIX);
    return name.substr(0, name.find('|'));
}

uint64_t rest(uint64_t total, uint64_t part) {
    return total > part ? total - part : 0;
}

std::string in_gib(double bytes) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.4f", std::ceil(bytes / gib * 1e4) / 1e4);
    return text;
}

// Tells whether a runner shares its device's memory with streamed ones.
bool budgeted(const Placement& placement) {
    return placement.placements != nullptr && !placement.placements->stream_budget.streamers.empty() &&
           ggml_backend_dev_type(placement.runtime->dev) != GGML_BACKEND_DEVICE_TYPE_CPU;
}

// What else helps when a module's graph does not fit.
std::string smaller_pictures(const std::string& module) {
    return module == "vae"                                   ? ", or draw a smaller picture or in smaller tiles (vae_tiling)"
           : module == "diffusion" || module == "controlnet" ? ", or draw a smaller picture"
                                                             : "";
}

// Frees what others keep on a runner's device, and what it keeps there itself as long as its graph is not bound to it.
// Returns false where there can be nothing.
bool make_room(Placement& placement) {
    if (!budgeted(placement)) {
        return false;
    }
    Streamer* const self = placement.streamer.get();
    placement.placements->stream_budget.yield(placement.runtime->dev, *placement.placements, UINT64_MAX / 2, self);
    if (self != nullptr && !self->bound()) {
        self->release();
    }
    return true;
}

// Ends a rehearsal at its first graph.
struct Rehearsed {};

thread_local bool rehearsing = false;

double now() {
#ifdef SDCPP_TEST_BACKEND
    if (stream_clock != nullptr) {
        return stream_clock();
    }
#endif
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// --- budget ----------------------------------------------------------------------------------------------------------

uint64_t StreamBudget::fixed(ggml_backend_dev_t dev, const Placements& placements) const {
    const auto more = others.find(dev);
    return placements.weights_on(dev) + (more != others.end() ? more->second : 0);
}

uint64_t StreamBudget::held(ggml_backend_dev_t dev, const Placements& placements, const Streamer* self) const {
    uint64_t bytes = fixed(dev, placements);
    for (const Streamer* streamer : streamers) {
        bytes += streamer != self && streamer->dev() == dev ? streamer->held() : 0;
    }
    return bytes;
}

uint64_t StreamBudget::bytes(ggml_backend_dev_t dev, const Placements& placements) const {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(dev, &free, &total);
    if (max_vram > 0.0f) {
        // Others may hold what was given to this context: it is not an error to be left less.
        return std::min(static_cast<uint64_t>(static_cast<double>(max_vram) * gib), free + held(dev, placements));
    }
    const double reserve = max_vram < 0.0f ? static_cast<double>(-max_vram) * gib
                                           : std::min(free_share * static_cast<double>(total), free_most);
    return rest(free + held(dev, placements), static_cast<uint64_t>(reserve));
}

void StreamBudget::yield(ggml_backend_dev_t dev, const Placements& placements, uint64_t wanted, const Streamer* self) {
    bool any = false;
    for (const Streamer* streamer : streamers) {
        any = any || (streamer != self && streamer->dev() == dev && !streamer->active() && streamer->held() > 0);
    }
    if (!any) {
        return;
    }
    const uint64_t budget = bytes(dev, placements);
    for (Streamer* streamer : streamers) {
        const uint64_t all = held(dev, placements, self) + wanted;
        if (all <= budget) {
            return;
        }
        if (streamer != self && streamer->dev() == dev && !streamer->active()) {
            streamer->give_up(all - budget);
        }
    }
}

void StreamBudget::shrink(ggml_backend_dev_t dev, uint64_t bytes, const Streamer* self) {
    for (Streamer* streamer : streamers) {
        if (streamer != self && streamer->dev() == dev && bytes > 0) {
            bytes = rest(bytes, streamer->shrink(bytes));
        }
    }
}

void StreamBudget::begin() {
    for (Streamer* streamer : streamers) {
        streamer->begin();
    }
}

// --- planning --------------------------------------------------------------------------------------------------------

Streamer::Streamer(Placement& owner) : owner_(owner) {
    owner_.placements->stream_budget.streamers.push_back(this);
}

Streamer::~Streamer() {
    auto& all = owner_.placements->stream_budget.streamers;
    all.erase(std::remove(all.begin(), all.end(), this), all.end());
    // The runner's tensors may be gone by now.
    bound_ = false;
    release();
}

ggml_backend_dev_t Streamer::dev() const {
    return owner_.runtime->dev;
}

uint64_t Streamer::held() const {
    uint64_t bytes = held_compute_bytes_ + (arena_.empty() && active_ ? plan_.arena_bytes() : 0);
    for (const Part& part : arena_) {
        bytes += part.buffer ? part.bytes : 0;
    }
    return bytes;
}

uint64_t Streamer::alloc_size(const ggml_tensor* tensor) const {
    return GGML_PAD(ggml_backend_buft_get_alloc_size(type_, tensor), ggml_backend_buft_get_alignment(type_));
}

void Streamer::take_turns(const char* why) {
    copy_ = nullptr;
    arrived_.clear();
    marks_.clear();
    loaded_.reset();
    reason_ = std::string(ggml_backend_dev_name(dev())) + " " + why + ": copies and computations take turns";
    LOG_INFO("module %s: %s", owner_.module.c_str(), reason_.c_str());
}

void Streamer::open_streams() {
    opened_ = true;
    compute_ = owner_.runtime_backend;
    type_ = ggml_backend_get_default_buffer_type(compute_);
    if (!owner_.overlap) {
        return;
    }
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(dev(), &props);
    if (!props.caps.async || !props.caps.events) {
        take_turns(props.caps.async ? "has no events" : "does not copy asynchronously");
    } else if ((copy_ = owner_.runtime->copy_backend()) == nullptr) {
        take_turns("gives no second stream");
    }
}

Streamer::Scan Streamer::scan(ggml_cgraph* graph, const ComputeUse& computing) const {
    struct Use {
        int first = 0;
        int last = 0;
        uint64_t bytes = 0;
    };
    const int nodes = graph->n_nodes;
    std::unordered_map<const ggml_tensor*, Use> uses;
    Scan found;
    found.use = &computing;
    if (!computing.heights.empty()) {
        found.lendable = static_cast<uint64_t>(lendable_share * static_cast<double>(computing.buffer));
    }
    uint64_t total = 0;
    std::vector<int> section(static_cast<size_t>(nodes) + 1);  // number of cuts before a node
    std::vector<std::string> names{runner_};
    for (int i = 0; i < nodes; ++i) {
        ggml_tensor* node = graph->nodes[i];
        const auto at = static_cast<size_t>(i);
        section[at + 1] = section[at];
        if (sd::ggml_graph_cut::is_graph_cut_tensor(node)) {
            names.back() = cut_name(node);
            names.push_back("final");
            ++section[at + 1];
        }
        if (!computes(node)) {
            continue;
        }
        for (ggml_tensor* source : node->src) {
            if (source == nullptr) {
                continue;
            }
            ggml_tensor* weight = source->view_src != nullptr ? source->view_src : source;
            if (params_.count(weight) == 0) {
                continue;
            }
            const auto [use, added] = uses.try_emplace(weight, Use{i, i, 0});
            use->second.last = i;
            if (added) {
                use->second.bytes = alloc_size(weight);
                total += use->second.bytes;
                found.weights.push_back(weight);
            }
        }
    }
    const uint64_t small = std::min(small_most, total / small_share);
    // No piece begins where a weight is still in use, and a weight that two sections use is fixed.
    std::vector<int> blocked(static_cast<size_t>(nodes) + 1);
    std::vector<bool> starts(static_cast<size_t>(nodes));
    const auto is_fixed = [&](const Use& use) {
        return use.bytes < small || section[static_cast<size_t>(use.first)] != section[static_cast<size_t>(use.last)];
    };
    for (const ggml_tensor* weight : found.weights) {
        const Use& use = uses[weight];
        if (is_fixed(use)) {
            found.fixed_bytes += use.bytes;
        } else {
            ++blocked[static_cast<size_t>(use.first) + 1];
            --blocked[static_cast<size_t>(use.last) + 1];
            starts[static_cast<size_t>(use.first)] = true;
        }
    }
    std::vector<int> piece_at(static_cast<size_t>(nodes));
    const auto add_piece = [&](int begin) {
        found.segments.emplace_back();
        found.segments.back().copies = 0;
        found.begin.push_back(begin);
    };
    add_piece(0);
    std::unordered_map<int, uint64_t> starting;  // node -> bytes of weights whose use begins there
    for (const ggml_tensor* weight : found.weights) {
        const Use& use = uses[weight];
        if (!is_fixed(use)) {
            starting[use.first] += use.bytes;
        }
    }
    const uint64_t enough = total / segment_share;
    int in_use = 0;
    for (int i = 0; i < nodes; ++i) {
        const auto at = static_cast<size_t>(i);
        in_use += blocked[at];
        if (starts[at] && in_use == 0 && found.segments.back().bytes > 0 &&
            (found.segments.back().bytes >= enough || section[at] != section[static_cast<size_t>(found.begin.back())])) {
            add_piece(i);
        }
        if (starts[at]) {
            found.segments.back().bytes += starting[i];
        }
        piece_at[at] = static_cast<int>(found.segments.size()) - 1;
        Segment& piece = found.segments.back();
        if (computes(graph->nodes[i])) {
            piece.cost += operation_seconds + cost_of(graph->nodes[i]);
        }
        if (!computing.heights.empty()) {
            const uint64_t height = computing.heights[at];
            piece.height = i == found.begin.back() ? height : std::max(piece.height, height);
        }
    }
    for (const ggml_tensor* weight : found.weights) {
        const Use& use = uses[weight];
        found.piece_of.push_back(is_fixed(use) ? -1 : piece_at[static_cast<size_t>(use.first)]);
        if (!is_fixed(use)) {
            ++found.segments[static_cast<size_t>(found.piece_of.back())].copies;
        }
    }
    int part = 0;
    for (size_t i = 0; i < found.segments.size(); ++i) {
        const auto of = [&](size_t piece) {
            // The section of the piece's first weight, which is what the piece is about.
            return section[static_cast<size_t>(found.begin[piece])];
        };
        part = i > 0 && of(i) == of(i - 1) ? part + 1 : 1;
        const bool several = part > 1 || (i + 1 < found.segments.size() && of(i + 1) == of(i));
        found.segments[i].name = names[static_cast<size_t>(of(i))] + (several ? "/" + std::to_string(part) : "");
    }
    return found;
}

// Gets to know a runner.
void Streamer::meet(const std::string& runner, ggml_context* params) {
    runner_ = runner;
    if (!opened_) {
        open_streams();
    }
    if (params_ctx_ != params || params_.empty()) {
        params_ctx_ = params;
        for (ggml_tensor* t = ggml_get_first_tensor(params); t != nullptr; t = ggml_get_next_tensor(params, t)) {
            params_.insert(t);
        }
    }
}

void Streamer::check(const std::string& runner, ggml_context* params, ggml_cgraph* graph) {
    meet(runner, params);
    StreamBudget& shared = owner_.placements->stream_budget;
    const uint64_t others = shared.fixed(dev(), *owner_.placements);
    const uint64_t budget = shared.bytes(dev(), *owner_.placements);
    const ComputeUse& use = compute_use(owner_, graph);
    const uint64_t bytes = compute_bytes(owner_, use);
    const uint64_t least = smallest_budget(input(scan(graph, use), bytes, 0));
    if (least > rest(budget, others)) {
        refuse(least + others, bytes, budget);
    }
}

bool Streamer::prepare(const std::string& runner, ggml_context* params, ggml_cgraph* graph) {
    meet(runner, params);
    const Placements& placements = *owner_.placements;
    StreamBudget& shared = owner_.placements->stream_budget;
    const ComputeUse& use = compute_use(owner_, graph);
    Scan next = scan(graph, use);
    const bool same = planned_ && next.same_weights(scan_);
    const uint64_t bytes = compute_bytes(owner_, use);
    const uint64_t expected = std::max({bytes, largest_, largest_before_});
    // Slots in the compute buffer must be free in all graphs of a generation, of which the first one makes the buffer.
    bool outdated = !active_ && plan_.borrowed_end() > use.buffer;
    for (size_t i = 0; same && i < next.segments.size(); ++i) {
        outdated = outdated || (plan_.borrows() && next.segments[i].height > scan_.segments[i].height);
    }
    if (same && (active_ || !outdated)) {
        next.lendable = std::min(next.lendable, scan_.lendable);
        for (size_t i = 0; i < next.segments.size(); ++i) {
            next.segments[i].height = std::max(next.segments[i].height, scan_.segments[i].height);
        }
    }
    scan_ = std::move(next);
    if (owner_.book->changes() != changes_) {
        changes_ = owner_.book->changes();
        drain();
        for (Weight& weight : weights_) {
            weight.loaded = false;
        }
    }
    if (!active_) {
        budget_ = shared.bytes(dev(), placements);
    }
    if (same && bytes <= compute_bytes_ && !outdated) {
        shared.yield(dev(), placements, std::min(plan_.peak_bytes, wanted()), this);
        const uint64_t room = std::min(most_, rest(budget_, shared.held(dev(), placements, this)));
        // Weights have more room than was planned with, since others have less or pictures are smaller now. What is
        // computed seldom gains nothing by it.
        const bool more = !active_ && !seldom() && !plan_.slots.empty() &&
                          static_cast<double>(rest(room, expected)) >
                              budget_worth_a_plan * static_cast<double>(rest(room_, compute_bytes_));
        if (plan_.peak_bytes <= room && !more) {
            largest_ = std::max(largest_, bytes);
            return true;
        }
    }
    compute_bytes_ = !same ? bytes : active_ ? std::max(bytes, compute_bytes_) : expected;
    const bool may_be_less = same && !active_ && bytes < expected;
    unbind();
    release();
    shared.yield(dev(), placements, wanted(), this);
    uint64_t others = shared.held(dev(), placements, this);
    plan(std::min(most_, rest(budget_, others)));
    if (!plan_.feasible && may_be_less) {
        compute_bytes_ = bytes;
        plan(std::min(most_, rest(budget_, others)));
    }
    if (!plan_.feasible) {
        shared.shrink(dev(), rest(plan_.minimum_budget + others, budget_), this);
        others = shared.held(dev(), placements, this);
        most_ = UINT64_MAX;
        plan(rest(budget_, others));
    }
    if (!plan_.feasible) {
        planned_ = false;
        refuse(plan_.minimum_budget + others, compute_bytes_, budget_);
    }
    largest_ = std::max(largest_, bytes);
    return false;
}

// Returns the bytes for which others give up what they keep.
uint64_t Streamer::wanted() const {
    const uint64_t all = scan_.weight_bytes();
    if (!seldom()) {
        return compute_bytes_ + all;
    }
    uint64_t largest = 0;
    for (const Segment& piece : scan_.segments) {
        largest = std::max(largest, piece.bytes);
    }
    const uint64_t pieces = all - scan_.fixed_bytes;
    return compute_bytes_ + scan_.fixed_bytes + std::min(pieces, largest + pieces / seldom_share);
}

// Tells whether the network is computed once or twice a picture: it copies about all its weights in any case, so that it
// takes no more from others, which would have to copy that again, than streaming needs.
bool Streamer::seldom() const {
    return owner_.module == "te" || owner_.module == "clip_vision" || owner_.module == "photomaker";
}

void Streamer::refuse(uint64_t needed, uint64_t compute_bytes, uint64_t budget) const {
    const float max_vram = owner_.placements->stream_budget.max_vram;
    const bool given = max_vram > 0.0f && static_cast<double>(budget) + 1.0 > static_cast<double>(max_vram) * gib;
    const std::string least = in_gib(static_cast<double>(needed));
    throw NoRoom("module " + owner_.module + " (" + runner_ + ") needs at least " + least + " GiB of " +
                 ggml_backend_dev_name(dev()) + ", of which its compute buffer takes " +
                 in_gib(static_cast<double>(compute_bytes)) + ", but only " + in_gib(static_cast<double>(budget)) +
                 " may be used: " + (given ? "set max_vram to " + least + " or more" : "free memory of the device") +
                 smaller_pictures(owner_.module));
}

StreamInput Streamer::input(const Scan& scan, uint64_t compute_bytes, uint64_t room) const {
    StreamInput input;
    input.segments = scan.segments;
    input.budget = room;
    input.compute_bytes = compute_bytes;
    input.fixed_bytes = scan.fixed_bytes;
    if (copy_ != nullptr && borrows_) {
        input.compute_buffer = scan.lendable;
    }
    input.largest_buffer = ggml_backend_buft_get_max_size(type_);
    input.alignment = ggml_backend_buft_get_alignment(type_);
    input.launch_cost = launch_seconds;
    input.copy_cost = copy_seconds;
    input.overlap = copy_ != nullptr;
    return input;
}

void Streamer::plan(uint64_t room) {
    room_ = room;
    plan_ = stream_plan(input(scan_, compute_bytes_, room));
    planned_ = plan_.feasible;
    if (!plan_.feasible) {
        return;
    }
    std::vector<int> segment_of(scan_.segments.size(), -1);
    for (size_t i = 0; i < plan_.slots.size(); ++i) {
        for (size_t piece : plan_.slots[i].segments) {
            segment_of[piece] = static_cast<int>(i);
        }
    }
    weights_.clear();
    for (size_t i = 0; i < scan_.weights.size(); ++i) {
        Weight weight;
        weight.tensor = scan_.weights[i];
        weight.bytes = alloc_size(weight.tensor);
        weight.piece = scan_.piece_of[i];
        weight.segment = weight.piece < 0 ? -1 : segment_of[static_cast<size_t>(weight.piece)];
        weight.borrows = weight.segment >= 0 && plan_.slots[static_cast<size_t>(weight.segment)].borrows;
        weights_.push_back(weight);
    }
    // Neighbours in host memory are neighbours in a slot, so that one copy takes both.
    std::vector<Weight*> order;
    for (Weight& weight : weights_) {
        order.push_back(&weight);
    }
    std::sort(order.begin(), order.end(),
              [](const Weight* a, const Weight* b) { return a->tensor->data < b->tensor->data; });
    std::vector<uint64_t> filled(plan_.slots.size());
    for (Weight* weight : order) {
        if (weight->segment >= 0) {
            uint64_t& end = filled[static_cast<size_t>(weight->segment)];
            weight->offset = end;
            end += weight->bytes;
        }
    }
}

// --- device memory ---------------------------------------------------------------------------------------------------

bool Streamer::alloc_arena() {
    const OnException forget([this] { forget_arena(); });
    if (plan_.slot_bytes > 0) {
        arena_.push_back({plan_.slot_bytes, nullptr});
    }
    const size_t first = arena_.size();
    const uint64_t most = std::min<uint64_t>(ggml_backend_buft_get_max_size(type_), plan_.resident_bytes / part_share);
    const size_t tensors = 2 * (weights_.size() + plan_.slots.size());
    places_.reset(ggml_init({tensors * ggml_tensor_overhead(), nullptr, true}));
    uint64_t tail_most = 0;
    for (Weight& weight : weights_) {
        weight.place = ggml_dup_tensor(places_.get(), weight.tensor);
        ggml_set_name(weight.place, weight.tensor->name);
        weight.loaded = false;
        if (weight.segment >= 0) {
            const uint64_t tail = ggml_backend_buft_get_alloc_size(type_, weight.tensor) - ggml_nbytes(weight.tensor);
            tail_most = std::max(tail_most, tail);
            continue;
        }
        if (arena_.size() == first || weight.bytes > rest(most, arena_.back().bytes)) {
            arena_.push_back({0, nullptr});
        }
        weight.part = arena_.size() - 1;
        weight.offset = arena_.back().bytes;
        arena_.back().bytes += weight.bytes;
    }
    if (tail_most > 0) {
        ggml_backend_buffer_type_t host = ggml_backend_dev_host_buffer_type(dev());
        zeros_.reset(ggml_backend_buft_alloc_buffer(host != nullptr ? host : ggml_backend_cpu_buffer_type(), tail_most));
    }
    if ((tail_most > 0 && !zeros_) || !fill_arena()) {
        drop_arena();
        return false;
    }
    if (zeros_) {
        ggml_backend_buffer_clear(zeros_.get(), 0);
    }
    base_ = static_cast<char*>(ggml_backend_buffer_get_base(arena_.front().buffer.get()));
    const auto put_in_slot = [&](ggml_tensor* tensor, int segment, uint64_t begin) {
        const Slot& planned = plan_.slots[static_cast<size_t>(segment)];
        char* const address = base_ + planned.offset + begin;
        if (planned.borrows) {  // from the compute buffer, which is not there yet
            tensor->buffer = &borrowed_;
            tensor->data = address;
        } else {
            ggml_backend_tensor_alloc(arena_.front().buffer.get(), tensor, address);
        }
    };
    for (const Weight& weight : weights_) {
        if (weight.segment >= 0) {
            put_in_slot(weight.place, weight.segment, weight.offset);
        }
    }
    pinned_ = !weights_.empty() && weights_pinned(weights_.front().tensor->buffer);
    make_events();
    copies_.clear();
    for (int i = 0; i < static_cast<int>(plan_.slots.size()); ++i) {
        copies_.push_back(copies_of(i, [&](ggml_tensor* tensor, uint64_t begin) { put_in_slot(tensor, i, begin); }));
    }
    next_ = issued_ = 0;
    timed_passes_ = 0;
    seconds_ = 0.0;
    loading_ = true;
    stall_seconds_ = -1.0;
    return true;
}

// Gets the parts of the arena that are missing; their residents will be copied anew.
bool Streamer::fill_arena() {
    for (size_t i = 0; i < arena_.size(); ++i) {
        Part& part = arena_[i];
        if (part.buffer) {
            continue;
        }
        part.buffer.reset(ggml_backend_buft_alloc_buffer(type_, part.bytes));
        if (!part.buffer) {
            return false;
        }
        ggml_backend_buffer_set_usage(part.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (const Weight& weight : weights_) {
            if (weight.segment < 0 && weight.part == i) {
                char* const base = static_cast<char*>(ggml_backend_buffer_get_base(part.buffer.get()));
                ggml_backend_tensor_alloc(part.buffer.get(), weight.place, base + weight.offset);
                loading_ = true;
            }
        }
    }
    return true;
}

void Streamer::give_up(uint64_t bytes) {
    const size_t first = plan_.slot_bytes > 0 ? 1 : 0;  // the slots lie before the residents
    for (size_t i = arena_.size(); i-- > first && bytes > 0;) {
        Part& part = arena_[i];
        if (!part.buffer) {
            continue;
        }
        for (Weight& weight : weights_) {
            if (weight.segment < 0 && weight.part == i) {
                weight.loaded = false;
                weight.place->buffer = nullptr;
                weight.place->data = nullptr;
            }
        }
        part.buffer.reset();
        bytes = rest(bytes, part.bytes);
    }
    if (bytes > 0) {
        release();
    }
}

// Makes an event for each segment's arrival, for the mark behind it, and for those marks before it that are waited for.
void Streamer::make_events() {
    arrived_.clear();
    marks_.clear();
    if (copy_ == nullptr) {
        return;
    }
    const size_t count = plan_.slots.size();
    marks_.resize(2 * count);
    bool refused = false;
    const auto make = [&](ggml_backend_event_ptr& event) {
        if (!event) {
            event.reset(ggml_backend_event_new(dev()));
            refused = refused || !event;
        }
    };
    make(loaded_);
    for (size_t i = 0; i < count; ++i) {
        make(arrived_.emplace_back());
        make(marks_[2 * i + 1]);
        for (const SlotPart& part : plan_.slots[i].parts) {
            if (part.back > 0) {
                make(marks_[(mark_behind(i + count) - part.back) % marks_.size()]);
            }
        }
    }
    if (refused) {
        take_turns("refused an event");
    }
}

// Returns the copies that fill a segment's slot; `put` gives a tensor its address, counted from the slot's begin.
std::vector<Streamer::Copy> Streamer::copies_of(int segment, const std::function<void(ggml_tensor*, uint64_t)>& put) {
    const Slot& planned = plan_.slots[static_cast<size_t>(segment)];
    const bool plain = is_one_of(plain_backends, dev());
    const auto bytes_at = [&](uint64_t begin, uint64_t bytes) {
        ggml_tensor* tensor = ggml_new_tensor_1d(places_.get(), GGML_TYPE_I8, static_cast<int64_t>(bytes));
        put(tensor, begin);
        return tensor;
    };
    ggml_tensor* const slot = plain ? bytes_at(0, planned.bytes) : nullptr;
    std::vector<Copy> copies;
    const auto add = [&](const Copy& next) {
        if (plain && !copies.empty() && copies.back().end == next.begin &&
            copies.back().source + (copies.back().end - copies.back().begin) == next.source) {
            copies.back().end = next.end;
        } else {
            copies.push_back(next);
        }
    };
    std::vector<const Weight*> order;
    for (const Weight& weight : weights_) {
        if (weight.segment == segment) {
            order.push_back(&weight);
        }
    }
    std::sort(order.begin(), order.end(), [](const Weight* a, const Weight* b) { return a->offset < b->offset; });
    for (const Weight* weight : order) {
        const uint64_t used = ggml_nbytes(weight->tensor);
        const uint64_t whole = ggml_backend_buft_get_alloc_size(type_, weight->tensor);
        add({plain ? slot : weight->place, weight->offset, weight->offset + used,
             static_cast<const char*>(weight->tensor->data), !plain});
        if (whole > used) {
            // Some devices read a little behind a tensor, where there must be zeros.
            const auto* zeros = static_cast<const char*>(ggml_backend_buffer_get_base(zeros_.get()));
            copies.push_back({plain ? slot : bytes_at(weight->offset + used, whole - used), weight->offset + used,
                              weight->offset + whole, zeros, !plain});
        }
    }
    return copies;
}

void Streamer::drop_arena() {
    drain();
    forget_arena();
}

void Streamer::forget_arena() {
    for (Weight& weight : weights_) {
        weight.place = nullptr;
        weight.loaded = false;
    }
    copies_.clear();
    places_.reset();
    arena_.clear();
    zeros_.reset();
}

void Streamer::release() {
    if (!arena_.empty()) {
        drop_arena();
    }
}

void Streamer::bind(uint64_t compute_bytes) {
    if (end_ > 0.0) {
        gap_seconds_[1] = std::exchange(gap_seconds_[0], std::max(0.0, now() - end_));
        end_ = 0.0;
    }
    held_compute_bytes_ = std::max(compute_bytes, compute_bytes_);
    active_ = true;
    bool yielded = false;
    while (!weights_.empty() && !(arena_.empty() ? alloc_arena() : fill_arena())) {
        if (!std::exchange(yielded, true)) {
            // What others keep is worth less than what is needed now.
            owner_.placements->stream_budget.yield(dev(), *owner_.placements, UINT64_MAX / 2, this);
            continue;
        }
        release();
        const uint64_t refused = plan_.arena_bytes();
        reason_ = std::string(ggml_backend_dev_name(dev())) + " refused " + in_gib(static_cast<double>(refused)) +
                  " GiB: less is kept there";
        LOG_INFO("module %s: %s", owner_.module.c_str(), reason_.c_str());
        const uint64_t minimum = plan_.minimum_budget;
        const auto less = static_cast<uint64_t>(arena_shrink * static_cast<double>(plan_.peak_bytes));
        const bool last = plan_.peak_bytes <= minimum;
        plan(std::max(less, minimum));
        if (last || !plan_.feasible) {
            planned_ = false;
            weights_.clear();
            throw NoRoom("module " + owner_.module + " (" + runner_ + "): " + ggml_backend_dev_name(dev()) +
                         " has no " + in_gib(static_cast<double>(refused)) +
                         " GiB of memory left, which it needs at least: free some of it" +
                         smaller_pictures(owner_.module));
        }
    }
    for (Weight& weight : weights_) {
        if (!bound_) {
            weight.host = *weight.tensor;
        }
        if (weight.borrows) {
            continue;  // until the compute buffer is there, see borrow()
        }
        weight.lie_at(*weight.place);
    }
    bound_ = true;
    peak_ = std::max(peak_, owner_.placements->stream_budget.held(dev(), *owner_.placements));
}

void Streamer::restore() {
    if (!bound_) {
        return;
    }
    for (Weight& weight : weights_) {
        weight.lie_at(weight.host);
    }
    bound_ = false;
}

void Streamer::unbind() {
    restore();
    active_ = false;
    held_compute_bytes_ = 0;
}

uint64_t Streamer::shrink(uint64_t bytes) {
    const uint64_t before = plan_.peak_bytes;
    if (!active_ || before <= plan_.minimum_budget) {
        return 0;
    }
    restore();
    release();
    most_ = std::max(plan_.minimum_budget, rest(before, bytes));
    plan(most_);
    return before - plan_.peak_bytes;
}

// Gives the weights whose slots lie in the compute buffer their addresses there, and what views them in the graph.
// Returns false when the graph uses the buffer in another way than was planned.
bool Streamer::borrow(ggml_cgraph* graph) {
    const ComputeUse& use = *scan_.use;
    const auto nodes = static_cast<size_t>(graph->n_nodes);
    const auto first = static_cast<size_t>(
        std::find_if(use.offsets.begin(), use.offsets.end(), [](int64_t offset) { return offset >= 0; }) -
        use.offsets.begin());
    if (first >= nodes) {
        return false;
    }
    ggml_backend_buffer_t buffer = root(graph->nodes[first])->buffer;
    char* const base = static_cast<char*>(ggml_backend_buffer_get_base(buffer));
    if (plan_.borrowed_end() > ggml_backend_buffer_get_size(buffer)) {
        return false;
    }
    bool as_measured = true;
    for (size_t i = 0; i < nodes; ++i) {
        as_measured = as_measured && (use.offsets[i] < 0 || root(graph->nodes[i])->data == base + use.offsets[i]);
    }
    if (!as_measured) {
        // It was laid out for another graph; what counts is whether the slots are free.
        ComputeUse real;
        note_use(graph, type_, buffer, real);
        for (size_t piece = 0, i = 0; i < nodes; ++i) {
            piece += piece + 1 < scan_.begin.size() && scan_.begin[piece + 1] <= static_cast<int>(i) ? 1 : 0;
            if (real.heights[i] > scan_.segments[piece].height) {
                return false;
            }
        }
    }
    borrowed_ = *buffer;
    borrowed_.usage = GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
    ggml_context* const places = places_.get();
    for (ggml_tensor* t = ggml_get_first_tensor(places); t != nullptr; t = ggml_get_next_tensor(places, t)) {
        if (t->buffer == &borrowed_) {
            t->data = base + (static_cast<char*>(t->data) - base_);
        }
    }
    base_ = base;
    for (Weight& weight : weights_) {
        if (weight.borrows) {
            weight.lie_at(*weight.place);
        }
    }
    follow(graph);
    return true;
}

// Gives them back their addresses in host memory, before the compute buffer can change.
void Streamer::give_back() {
    for (Weight& weight : weights_) {
        if (weight.borrows) {
            weight.lie_at(weight.host);
        }
    }
}

// Lets the graph's views of weights follow these.
void Streamer::follow(ggml_cgraph* graph) {
    each_tensor(graph, [&](ggml_tensor* tensor) {
        if (tensor->view_src != nullptr && params_.count(tensor->view_src) != 0) {
            tensor->buffer = tensor->view_src->buffer;
            tensor->data = static_cast<char*>(tensor->view_src->data) + tensor->view_offs;
        }
    });
}

// --- copying and computing -------------------------------------------------------------------------------------------

// Waits for everything and forgets what was prefetched.
void Streamer::drain() {
    if (!opened_) {
        return;
    }
    next_ = issued_ = 0;
    if (copy_ != nullptr) {
        ggml_backend_synchronize(copy_);
    }
    ggml_backend_synchronize(compute_);
}

void Streamer::copy(ggml_tensor* target, const char* source, uint64_t offset, uint64_t bytes) {
    double seconds = 0.0;
    if (copy_ != nullptr) {
        ggml_backend_tensor_set_async(copy_, target, source, offset, bytes);
        untimed_ += bytes;
    } else {
        const double begin = now();
        ggml_backend_tensor_set(target, source, offset, bytes);
        seconds = now() - begin;
    }
    owner_.book->copied(true, pinned_, bytes, seconds);
}

void Streamer::note_rate(uint64_t bytes, double seconds) {
    if (bytes > 0) {
        timed_bytes_ = bytes;
        copy_rate_ = static_cast<double>(bytes) / std::max(seconds, 1e-9);
    }
}

// Copies the residents that a run needs for the first time.
void Streamer::load(const Run& run) {
    uint64_t bytes = 0;
    for (size_t i : run.loads) {
        bytes += ggml_nbytes(weights_[i].tensor);
    }
    // A few bytes only tell how long a copy takes to begin.
    const bool timing = copy_ != nullptr && timed_bytes_ < std::min(bytes, enough_to_time);
    if (timing) {
        ggml_backend_synchronize(copy_);
    }
    const double begin = now();
    for (size_t i : run.loads) {
        Weight& weight = weights_[i];
        copy(weight.place, static_cast<const char*>(weight.host.data), 0, ggml_nbytes(weight.tensor));
        weight.loaded = true;
    }
    if (copy_ == nullptr) {
        return;
    }
    ggml_backend_event_record(loaded_.get(), copy_);
    if (timing) {
        ggml_backend_event_synchronize(loaded_.get());
        note_rate(bytes, now() - begin);
    }
    if (keeps("load")) {
        ggml_backend_event_wait(compute_, loaded_.get());
    }
}

// Copies a streamed segment, each part of its slot once the segment that had it has been computed.
void Streamer::issue(uint64_t number) {
    const Slot& segment = plan_.slots[index(number)];
    const std::vector<Copy>& copies = copies_[index(number)];
    size_t last = SIZE_MAX;
    for (const SlotPart& part : segment.parts) {
        const bool waits = part.back > 0 && part.back != last && mark_behind(number) >= part.back;
        if (copy_ != nullptr && waits && keeps("reader")) {
            ggml_backend_event_wait(copy_, mark(mark_behind(number) - part.back));
        }
        last = part.back;
        for (const Copy& one : copies) {
            uint64_t begin = std::max(one.begin, part.begin), end = std::min(one.end, part.end);
            if (begin >= end) {
                continue;
            }
            if (one.whole) {
                // All of its room has to be free: it is copied with the part that is free last.
                const bool later = std::any_of(&part + 1, segment.parts.data() + segment.parts.size(),
                                               [&](const SlotPart& other) {
                                                   return other.begin < one.end && one.begin < other.end;
                                               });
                if (later) {
                    continue;
                }
                begin = one.begin;
                end = one.end;
            }
            // A target for all of a slot begins where the slot does, any other one at its own begin.
            copy(one.target, one.source + (begin - one.begin), one.whole ? 0 : begin, end - begin);
        }
    }
    if (copy_ != nullptr) {
        ggml_backend_event_record(arrived_[index(number)].get(), copy_);
    }
}

void Streamer::issue_until(uint64_t number) {
    for (; issued_ < number; ++issued_) {
        issue(issued_);
    }
}

// Tells whether a segment's copy has to wait for nothing but computations that the device was given: those before the
// mark `given`.
bool Streamer::free_for(uint64_t number, uint64_t given) const {
    const uint64_t back = plan_.slots[index(number)].parts.back().back;
    // A copy from pageable memory holds up the host, which must not wait for what the device is computing now.
    return back == 0 || mark_behind(number) < back || mark_behind(number) - back + (pinned_ ? 0 : 2) < given;
}

std::vector<Streamer::Run> Streamer::runs(int nodes) const {
    const size_t pieces = scan_.segments.size();
    uint64_t total = 0;
    std::vector<uint64_t> to_load(pieces);
    std::vector<std::vector<size_t>> loads(pieces);
    for (size_t i = 0; i < weights_.size(); ++i) {
        const Weight& weight = weights_[i];
        total += weight.bytes;
        if (weight.segment < 0 && !weight.loaded) {
            const auto piece = static_cast<size_t>(std::max(weight.piece, 0));
            to_load[piece] += weight.bytes;
            loads[piece].push_back(i);
        }
    }
    const auto node_of = [&](size_t piece) { return piece < pieces ? scan_.begin[piece] : nodes; };
    std::vector<Run> found;
    uint64_t loading = 0;
    size_t segment = 0;  // the next one
    bool inside = false;
    for (size_t i = 0; i < pieces; ++i) {
        const bool enters = segment < plan_.slots.size() && plan_.slots[segment].segments.front() == i;
        const bool leaves = inside && plan_.slots[segment - 1].segments.back() < i;
        if (found.empty() || enters || leaves ||
            (!inside && loading > 0 && loading + to_load[i] > total / load_share)) {
            found.emplace_back();
            found.back().begin = node_of(i);
            loading = 0;
            inside = enters;
            if (enters) {
                found.back().segment = static_cast<int>(segment++);
            }
        }
        found.back().end = node_of(i + 1);
        found.back().loads.insert(found.back().loads.end(), loads[i].begin(), loads[i].end());
        loading += to_load[i];
    }
    return found;
}

ggml_status Streamer::compute(ggml_cgraph* graph, bool (*cancelled)()) {
    if (plan_.borrows() && (!keeps("layout") || !borrow(graph))) {
        LOG_INFO("module %s: no slot lies in the compute buffer any more", owner_.module.c_str());
        borrows_ = false;
        restore();
        release();
        StreamBudget& shared = owner_.placements->stream_budget;
        const uint64_t others = shared.held(dev(), *owner_.placements, this);
        plan(std::min(most_, rest(budget_, others)));
        if (!plan_.feasible) {
            refuse(plan_.minimum_budget + others, compute_bytes_, budget_);
        }
        bind(held_compute_bytes_);
        follow(graph);
    }
    const double begin = now();
    const bool was_loading = loading_;
    const OnException undo([this] {
        give_back();
        drain();
    });
    const ggml_status status = copy_ != nullptr ? compute_overlapped(graph, cancelled)
                                                : compute_in_turn(graph, cancelled);
    give_back();
    if (status != GGML_STATUS_SUCCESS) {
        drain();
        return status;
    }
    ++passes_;
    if (!was_loading) {
        ++timed_passes_;
        seconds_ += now() - begin;
    }
    loading_ = false;
    return status;
}

ggml_status Streamer::compute_overlapped(ggml_cgraph* graph, bool (*cancelled)()) {
    std::vector<Run> all = runs(graph->n_nodes);
    const auto count = static_cast<uint64_t>(plan_.slots.size());
    const bool loading = std::any_of(all.begin(), all.end(), [](const Run& run) { return !run.loads.empty(); });
    // The host waits in the one graph that is measured, in none of the others.
    const bool measuring = !loading && stall_seconds_ < 0.0 && count > 0;
    double stalled = 0.0;
    const uint64_t end = next_ + count;
    uint64_t launched = next_;  // all segments before it
    const auto can_issue = [&] {
        // Residents are copied in between, so that far ahead of them would be too early; and the next graph's compute
        // buffer is not there yet.
        return issued_ < (loading ? launched + 2 : end + count) && free_for(issued_, 2 * launched) &&
               (issued_ < end || !plan_.slots[index(issued_)].borrows);
    };
    const auto look_ahead = [&](double most = HUGE_VAL) {
        for (double bytes = 0.0; count > 0 && can_issue(); issue_until(issued_ + 1)) {
            bytes += static_cast<double>(plan_.slots[index(issued_)].bytes);
            if (bytes > most) {
                break;
            }
        }
    };
    if (!loading && pinned_) {
        look_ahead();
    }
    for (size_t i = 0; i < all.size(); ++i) {
        Run& run = all[i];
        if (cancelled()) {
            return GGML_STATUS_ABORTED;
        }
        if (!run.loads.empty()) {
            load(run);
        }
        if (run.segment >= 0) {
            const size_t place = index(launched);
            if (marks_[2 * place]) {
                ggml_backend_event_record(marks_[2 * place].get(), compute_);
            }
            issue_until(launched + 1);
            if (measuring) {
                ggml_backend_synchronize(compute_);
                const double begin = now();
                ggml_backend_event_synchronize(arrived_[place].get());
                stalled += now() - begin;
            }
            if (keeps("arrival")) {
                ggml_backend_event_wait(compute_, arrived_[place].get());
            }
        }
        ggml_cgraph view = ggml_graph_view(graph, run.begin, run.end);
        const ggml_status status = ggml_backend_graph_compute_async(compute_, &view);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        if (run.segment >= 0) {
            ggml_backend_event_record(mark(mark_behind(launched++)), compute_);
        }
        if (i + 1 < all.size() && all[i + 1].segment >= 0) {
            look_ahead();
        }
    }
    if (measuring) {
        ggml_backend_synchronize(copy_);
        ggml_backend_synchronize(compute_);
        stall_seconds_ = stalled;
        uint64_t bytes = 0;
        const double begin = now();
        for (; can_issue(); issue_until(issued_ + 1)) {
            bytes += plan_.slots[index(issued_)].bytes;
        }
        ggml_backend_synchronize(copy_);
        // Loading may have told more.
        if (bytes >= std::min(enough_to_time, timed_bytes_)) {
            note_rate(bytes, now() - begin);
        }
    }
    // The next graph begins with these. What is copied for longer than the host takes until then would hold up the graph's
    // inputs, which are copied behind it.
    look_ahead(pinned_ ? std::min(gap_seconds_[0], gap_seconds_[1]) * copy_rate_ : HUGE_VAL);
    ggml_backend_synchronize(compute_);
    next_ = end;
    if (copy_rate_ > 0.0) {
        owner_.book->took(static_cast<double>(std::exchange(untimed_, 0)) / copy_rate_);
    }
    end_ = now();
    return GGML_STATUS_SUCCESS;
}

ggml_status Streamer::compute_in_turn(ggml_cgraph* graph, bool (*cancelled)()) {
    std::vector<Run> all = runs(graph->n_nodes);
    double copying = 0.0;
    for (Run& run : all) {
        if (cancelled()) {
            return GGML_STATUS_ABORTED;
        }
        const double begin = now();
        load(run);
        if (run.segment >= 0) {
            issue(next_ + static_cast<uint64_t>(run.segment));
            copying += now() - begin;
        }
        ggml_cgraph view = ggml_graph_view(graph, run.begin, run.end);
        const ggml_status status = ggml_backend_graph_compute(compute_, &view);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    if (copying > 0.0) {
        stall_seconds_ = copying;
        copy_rate_ = static_cast<double>(plan_.streamed_bytes) / copying;
    }
    next_ += plan_.slots.size();
    return GGML_STATUS_SUCCESS;
}

// --- what happened ---------------------------------------------------------------------------------------------------

void Streamer::begin() {
    restore();
    largest_before_ = std::exchange(largest_, 0);
    active_ = false;
    most_ = UINT64_MAX;
    end_ = 0.0;
    borrows_ = true;
    if (copy_ != nullptr || !owner_.overlap) {
        reason_.clear();  // what was refused; that copies take turns stays true
    }
    passes_ = timed_passes_ = 0;
    seconds_ = 0.0;
    peak_ = 0;
}

std::pair<uint64_t, uint64_t> Streamer::values(size_t piece) const {
    const auto& values = scan_.use->values;
    if (values.empty()) {
        return {0, 0};
    }
    const auto begin = values.begin() + scan_.begin[piece];
    const auto end = piece + 1 < scan_.begin.size() ? values.begin() + scan_.begin[piece + 1] : values.end();
    const auto [least, most] = std::minmax_element(begin, end);
    return {*least, *most};
}

bool Streamer::describe(sdcpp_stream_t* row) const {
    if (!planned_) {
        return false;
    }
    static thread_local std::string resident, streamed;
    resident.clear();
    streamed.clear();
    for (size_t i = 0; i < scan_.segments.size(); ++i) {
        std::string& list = plan_.resident[i] ? resident : streamed;
        list += (list.empty() ? "" : ", ") + scan_.segments[i].name;
    }
    *row = {owner_.module.c_str(),
            runner_.c_str(),
            ggml_backend_dev_name(dev()),
            plan_.slots.empty() ? "resident" : copy_ != nullptr ? "overlapped" : "in turn",
            reason_.c_str(),
            budget_,
            peak_,
            compute_bytes_,
            scan_.weight_bytes(),
            plan_.resident_bytes,
            plan_.streamed_bytes,
            plan_.slot_bytes,
            static_cast<int>(plan_.slots.size()),
            static_cast<int>(std::count_if(plan_.slots.begin(), plan_.slots.end(),
                                           [](const Slot& segment) { return segment.borrows; })),
            passes_,
            timed_passes_ > 0 ? seconds_ / static_cast<double>(timed_passes_) : 0.0,
            copy_rate_ > 0.0 ? static_cast<double>(plan_.streamed_bytes) / copy_rate_ : -1.0,
            stall_seconds_,
            resident.c_str(),
            streamed.c_str()};
    return true;
}

// --- seams -----------------------------------------------------------------------------------------------------------

bool streams(const Placement& placement) {
    return placement.streamer != nullptr;
}

bool stream_prepare(Placement& placement, const std::string& runner, ggml_context* params, ggml_cgraph* graph) {
    return placement.streamer->prepare(runner, params, graph);
}

void stream_bind(Placement& placement, size_t compute_bytes) {
    placement.streamer->bind(compute_bytes);
}

bool stream_bound(const Placement& placement) {
    return placement.streamer != nullptr && placement.streamer->bound();
}

ggml_status stream_compute(Placement& placement, ggml_cgraph* graph, bool (*cancelled)()) {
    return placement.streamer->compute(graph, cancelled);
}

void stream_unbind(Placement& placement) {
    if (placement.streamer != nullptr) {
        placement.streamer->unbind();
    } else if (placement.compute_bytes > 0) {
        placement.placements->stream_budget.others[placement.runtime->dev] -= placement.compute_bytes;
        placement.compute_bytes = 0;
    }
}

void stream_release(Placement& placement) {
    if (placement.streamer != nullptr) {
        placement.streamer->unbind();
        placement.streamer->release();
    }
}

void stream_yield(Placement& placement, ggml_cgraph* graph) {
    if (!budgeted(placement) || placement.streamer != nullptr) {
        return;
    }
    StreamBudget& shared = placement.placements->stream_budget;
    ggml_backend_dev_t dev = placement.runtime->dev;
    const uint64_t more = rest(compute_bytes(placement, compute_use(placement, graph)), placement.compute_bytes);
    shared.yield(dev, *placement.placements, more);
    shared.others[dev] += more;
    placement.compute_bytes += more;
}

void rehearse(const Placements& placements, const std::function<void()>& function) {
    if (placements.stream_budget.streamers.empty()) {
        return;
    }
    rehearsing = true;
    try {
        function();
    } catch (const Rehearsed&) {
    } catch (...) {
        rehearsing = false;
        throw;
    }
    rehearsing = false;
}

void rehearse_graph(Placement& placement, const std::string& runner, ggml_context* params, ggml_cgraph* graph) {
    if (!rehearsing) {
        return;
    }
    if (placement.streamer != nullptr) {
        placement.streamer->check(runner, params, graph);
    }
    throw Rehearsed{};
}

bool compute_alloc(Placement& placement, bool (*allocate)(ggml_gallocr_t, ggml_cgraph*), ggml_gallocr_t allocator,
                   ggml_cgraph* graph) {
    if (allocate(allocator, graph)) {
        return true;
    }
    // A refused allocator has lost its buffer and does not know: only reserving makes it ask again.
    return make_room(placement) && ggml_gallocr_reserve(allocator, graph) && allocate(allocator, graph);
}

ggml_backend_buffer_t tensors_alloc(Placement& placement, ggml_context* ctx, ggml_backend_buffer_type_t type) {
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, type);
    if (buffer == nullptr) {
        forget_buffers(ctx);
        buffer = make_room(placement) ? ggml_backend_alloc_ctx_tensors_from_buft(ctx, type) : nullptr;
    }
    if (buffer == nullptr) {
        forget_buffers(ctx);
    }
    return buffer;
}

void no_room(const Placement& placement, const std::string& runner, const std::string& what) {
    ggml_backend_dev_t dev = ggml_backend_get_device(placement.runtime_backend);
    throw NoRoom("module " + placement.module + " (" + runner + "): " + ggml_backend_dev_name(dev) +
                 " has no memory left for its " + what + ": free some of it" +
                 (what == "weights" ? ", or set max_vram" : smaller_pictures(placement.module)));
}

ggml_backend_buffer_t beside_alloc(Placement& placement, ggml_context* ctx) {
    if (budgeted(placement)) {
        StreamBudget& shared = placement.placements->stream_budget;
        ggml_backend_buffer_type_t type = ggml_backend_get_default_buffer_type(placement.runtime_backend);
        shared.yield(placement.runtime->dev, *placement.placements,
                     ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, type));
    }
    ggml_backend_buffer_t buffer =
        tensors_alloc(placement, ctx, ggml_backend_get_default_buffer_type(placement.runtime_backend));
    if (buffer == nullptr) {
        no_room(placement, placement.module, "control image");
    }
    if (placement.placements != nullptr) {
        placement.placements->stream_budget.others[placement.runtime->dev] += ggml_backend_buffer_get_size(buffer);
    }
    return buffer;
}

void beside_free(Placement& placement, ggml_backend_buffer_t buffer) {
    if (placement.placements != nullptr) {
        placement.placements->stream_budget.others[placement.runtime->dev] -= ggml_backend_buffer_get_size(buffer);
    }
    ggml_backend_buffer_free(buffer);
}

std::vector<std::map<std::string, ggml_tensor*>> merge_parts(const Placement& placement,
                                                             const std::map<std::string, ggml_tensor*>& tensors) {
    std::map<std::string, ggml_tensor*> weights = tensors;
    weights.erase("alphas_cumprod");  // the engine's own, freed long ago
    for (const auto& [name, weight] : weights) {
        // The CPU merges into host memory in place, where no copy tells that the weights on a device are old.
        weights_changed(weight);
    }
    if (!budgeted(placement)) {
        return {weights};
    }
    StreamBudget& shared = placement.placements->stream_budget;
    ggml_backend_dev_t dev = placement.runtime->dev;
    uint64_t total = 0;
    for (const auto& [name, weight] : weights) {
        total += ggml_nbytes(weight);
    }
    shared.yield(dev, *placement.placements, merge_factor * total);
    const uint64_t room = rest(shared.bytes(dev, *placement.placements), shared.held(dev, *placement.placements));
    std::vector<std::map<std::string, ggml_tensor*>> parts(1);
    uint64_t bytes = 0;
    for (const auto& [name, weight] : weights) {
        const uint64_t size = merge_factor * ggml_nbytes(weight);
        if (bytes > 0 && bytes + size > room) {
            parts.emplace_back();
            bytes = 0;
        }
        parts.back()[name] = weight;
        bytes += size;
    }
    return parts;
}

}  // namespace sdcpp
