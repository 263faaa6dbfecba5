#include "sdcpp/streaming/streamer.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "sdcpp/lanes/lane_group.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/common.h"
#include "sdcpp/streaming/long_graphs.h"
#include "sdcpp/streaming/memory_budget.h"
#include "sdcpp/streaming/no_room.h"
#include "sdcpp/streaming/test_hooks.h"
#include "util.h"

namespace sdcpp {

namespace {

constexpr double copy_seconds = 10e-6;        // what a copy takes besides its bytes
constexpr double launch_seconds = 10e-6;      // what a launch takes besides computing
constexpr uint64_t seldom_share = 32;         // what a network that is computed seldom takes others' memory for
constexpr double arena_shrink = 0.85;         // after a refusal
constexpr double budget_worth_a_plan = 1.05;  // growth for which a plan is made anew

}  // namespace

Streamer::Streamer(Placement& owner)
    : owner_(owner),
      arena_(owner.runtime_backend, plan_),
      queue_(owner, plan_),
      executor_(owner.runtime_backend, queue_, plan_) {
    budget().add(this);
}

Streamer::~Streamer() {
    budget().remove(this);
    // The runner's tensors may be gone by now: they are not unbound.
    release();
}

ggml_backend_dev_t Streamer::dev() const {
    return owner_.runtime->dev;
}

std::string Streamer::device_name() const {
    return ggml_backend_dev_name(dev());
}

MemoryBudget& Streamer::budget() const {
    return owner_.placements->memory_budget;
}

uint64_t Streamer::held() const {
    return held_compute_bytes_ + (arena_.empty() && active_ ? plan_.arena_bytes() : arena_.bytes());
}

void Streamer::take_turns(const char* why) {
    const std::string reason = device_name() + " " + why + ": copies and computations take turns";
    report_.set_reason(reason);
    LOG_INFO("module %s: %s", owner_.module.c_str(), reason.c_str());
}

void Streamer::get_to_know(const std::string& runner, ggml_context* params) {
    runner_ = runner;
    if (const char* why = queue_.open()) {
        take_turns(why);
    }
    if (params_ctx_ != params || params_.empty()) {
        params_ctx_ = params;
        scans_.forget();
        for (ggml_tensor* t = ggml_get_first_tensor(params); t != nullptr; t = ggml_get_next_tensor(params, t)) {
            params_.insert(t);
        }
    }
}

// --- planning --------------------------------------------------------------------------------------------------------

void Streamer::check(const std::string& runner, ggml_context* params, ggml_cgraph* graph) {
    get_to_know(runner, params);
    const uint64_t others = budget().fixed(dev());
    const uint64_t allowed = budget().bytes(dev());
    const auto use = compute_use(owner_, graph);
    const uint64_t bytes = compute_bytes(owner_, *use);
    const Scan scan = scan_graph(runner_, params_, graph, arena_.type(), use);
    const uint64_t least = smallest_budget(input(scan, bytes, 0));
    if (least > saturating_sub(allowed, others) && !budget().give_up_reserve(dev(), least + others)) {
        throw_budget_too_small(owner_, runner_, least + others, bytes, allowed);
    }
}

bool Streamer::prepare(const std::string& runner, ggml_context* params, ggml_cgraph* graph) {
    LaneGroup* const group = owner_.lanes.get();
    lanes_ = group != nullptr ? group->scans().size() : 1;
    if (computes_again(owner_)) {
        scan_ = *group->streamed();
        reload_changed_weights();
        return true;
    }
    get_to_know(runner, params);
    const auto use = compute_use(owner_, graph);
    const uint64_t bytes = compute_bytes(owner_, *use);
    Scan next = scan_of(graph, use);
    const bool same = planned_ && next.same_weights(scan_);
    // Slots in the compute buffer must be free in all graphs for which a plan serves, of a generation those that were
    // before as well, of which the first one makes the buffer.
    const bool outdated =
        (!active_ && plan_.borrowed_end() > use->buffer) || (same && plan_.borrows() && next.needs_more_buffer(scan_));
    reload_changed_weights();
    if (!active_) {
        budget_ = budget().bytes(dev());
    }
    const bool holds = same && !outdated && plan_holds(bytes);
    if (same && (active_ || holds)) {
        next.lend_no_more_than(scan_);
    }
    scan_ = std::move(next);
    if (!holds) {
        replan(bytes, same);
    }
    largest_compute_ = std::max(largest_compute_, bytes);
    largest_lanes_ = std::max(largest_lanes_, lanes_);
    if (group != nullptr) {
        group->streamed() = scan_;
    }
    return holds;
}

Scan Streamer::scan_of(ggml_cgraph* graph, std::shared_ptr<const ComputeUse> use) {
    const LaneGroup* const lanes = owner_.lanes.get();
    const bool scanned = lanes != nullptr && lanes->graph() == graph && !lanes->scans().front().segments.empty();
    Scan scan = scanned ? scan_lanes(lanes->scans(), graph, use) : scans_.of(runner_, params_, graph, arena_.type(), use);
    // What leaves layers out is computed with the plan and the weights of what does not.
    auto part = planned_ && !scan.same_weights(scan_)
                    ? sdcpp::scan_part(scan_, params_, graph, arena_.type(), std::move(use))
                    : std::nullopt;
    return part ? std::move(*part) : std::move(scan);
}

void Streamer::reload_changed_weights() {
    const uint64_t changes = owner_.record->changes();
    if (std::exchange(seen_changes_, changes) != changes) {
        queue_.drain();
        arena_.outdate();
    }
}

// Returns what a graph that will be computed in this generation is expected to take.
uint64_t Streamer::expected_compute(uint64_t compute_bytes) const {
    return std::max({compute_bytes, largest_compute_, lanes_ >= lanes_before_ ? largest_before_ : 0});
}

// Returns what the network may hold when others hold some bytes.
uint64_t Streamer::room_beside(uint64_t others) const {
    return std::min(ceiling_, saturating_sub(budget_, others));
}

// Tells whether the plan still fits, for the same weights, and is still worth it. A compute buffer that is larger than was
// planned with is so from then on.
bool Streamer::plan_holds(uint64_t compute_bytes) {
    const uint64_t larger = saturating_sub(compute_bytes, compute_bytes_);
    budget().make_room(dev(), std::min(plan_.peak_bytes, wanted_bytes()) + larger, this);
    const uint64_t room = room_beside(budget().held(dev(), this));
    // Weights have more room than was planned with, since others have less or pictures are smaller now. What is
    // computed seldom gains nothing by it.
    const bool more = !active_ && !is_computed_seldom() && !plan_.slots.empty() &&
                      static_cast<double>(saturating_sub(room, expected_compute(compute_bytes))) >
                          budget_worth_a_plan * static_cast<double>(saturating_sub(room_, compute_bytes_));
    if (plan_.peak_bytes + larger > room || more) {
        return false;
    }
    compute_bytes_ += larger;
    plan_.peak_bytes += larger;
    plan_.minimum_budget += larger;
    return true;
}

// Plans anew, `same`: for the same weights as before.
void Streamer::replan(uint64_t compute_bytes, bool same) {
    const uint64_t expected = expected_compute(compute_bytes);
    const bool may_be_less = same && !active_ && compute_bytes < expected;
    compute_bytes_ = !same ? compute_bytes : active_ ? std::max(compute_bytes, compute_bytes_) : expected;
    deactivate();
    release();
    budget().make_room(dev(), wanted_bytes(), this);
    uint64_t others = budget().held(dev(), this);
    plan(room_beside(others));
    if (!plan_.feasible && may_be_less) {
        compute_bytes_ = compute_bytes;
        plan(room_beside(others));
    }
    if (!plan_.feasible) {
        budget().shrink(dev(), saturating_sub(plan_.minimum_budget + others, budget_), this);
        others = budget().held(dev(), this);
        ceiling_ = UINT64_MAX;
        plan(room_beside(others));
    }
    if (!plan_.feasible && budget().give_up_reserve(dev(), plan_.minimum_budget + others)) {
        budget_ = budget().bytes(dev());
        plan(room_beside(others));
    }
    if (!plan_.feasible) {
        throw_budget_too_small(owner_, runner_, plan_.minimum_budget + others, compute_bytes_, budget_);
    }
}

// Returns the bytes for which others are evicted.
uint64_t Streamer::wanted_bytes() const {
    const uint64_t all = scan_.weight_bytes();
    if (!is_computed_seldom()) {
        return compute_bytes_ + all;
    }
    uint64_t largest = 0;
    for (const Segment& segment : scan_.segments) {
        largest = std::max(largest, segment.bytes);
    }
    const uint64_t segments = all - scan_.fixed_bytes;
    return compute_bytes_ + scan_.fixed_bytes + std::min(segments, largest + segments / seldom_share);
}

// Tells whether the network is computed once or twice a picture: it copies about all its weights in any case, so that
// it takes no more from others, which would have to copy that again, than streaming needs.
bool Streamer::is_computed_seldom() const {
    return owner_.module == "te" || owner_.module == "clip_vision" || owner_.module == "photomaker";
}

StreamInput Streamer::input(const Scan& scan, uint64_t compute_bytes, uint64_t room) const {
    StreamInput input;
    input.segments = scan.segments;
    input.budget = room;
    input.compute_bytes = compute_bytes;
    input.fixed_bytes = scan.fixed_bytes;
    if (queue_.overlaps() && may_borrow_) {
        input.compute_buffer = scan.lendable;
    }
    input.largest_buffer = ggml_backend_buft_get_max_size(arena_.type());
    input.alignment = ggml_backend_buft_get_alignment(arena_.type());
    input.launch_cost = launch_seconds;
    input.copy_cost = copy_seconds;
    input.overlap = queue_.overlaps();
    return input;
}

void Streamer::plan(uint64_t room) {
    room_ = room;
    plan_ = stream_plan(input(scan_, compute_bytes_, room));
    planned_ = plan_.feasible;
    if (planned_) {
        arena_.assign(scan_);
    }
}

// --- device memory ---------------------------------------------------------------------------------------------------

void Streamer::evict(uint64_t bytes) {
    if (arena_.evict(bytes) > 0) {
        release();
    }
}

uint64_t Streamer::shrink(uint64_t bytes) {
    const uint64_t before = plan_.peak_bytes;
    if (!active_ || before <= plan_.minimum_budget) {
        return 0;
    }
    unbind();
    release();
    ceiling_ = std::max(plan_.minimum_budget, saturating_sub(before, bytes));
    plan(ceiling_);
    return before - plan_.peak_bytes;
}

void Streamer::release() {
    if (!arena_.empty()) {
        forget_graphs(owner_);  // their views of weights
        queue_.stop();
        arena_.clear();
    }
}

bool Streamer::alloc_arena() {
    const bool anew = arena_.empty();
    OnExit forget([&] {
        if (anew) {
            arena_.clear();
        }
    });
    if (!arena_.alloc()) {
        forget.dismiss();
        return false;
    }
    if (anew && !arena_.empty()) {
        if (const char* why = queue_.start(arena_)) {
            take_turns(why);
        }
        executor_.measure_stall();
        report_.forget_seconds();
    }
    forget.dismiss();
    return true;
}

// Allocates the arena, where the device refuses it at the cost of what others keep, then with less room.
void Streamer::alloc_arena_or_less() {
    if (alloc_arena()) {
        return;
    }
    // What others keep is worth less than what is needed now.
    budget().make_all_room(dev(), this);
    while (!alloc_arena()) {
        release();
        const uint64_t refused = plan_.arena_bytes();
        const std::string reason = device_name() + " refused " + in_gib(refused) + " GiB: less is kept there";
        report_.set_reason(reason);
        LOG_INFO("module %s: %s", owner_.module.c_str(), reason.c_str());
        const uint64_t minimum = plan_.minimum_budget;
        const auto less = static_cast<uint64_t>(arena_shrink * static_cast<double>(plan_.peak_bytes));
        const bool last = plan_.peak_bytes <= minimum;
        plan(std::max(less, minimum));
        if (last || !plan_.feasible) {
            planned_ = false;
            arena_.forget();
            throw_arena_refused(owner_, runner_, refused);
        }
    }
}

void Streamer::bind(uint64_t compute_bytes) {
    executor_.note_gap();
    held_compute_bytes_ = std::max(compute_bytes, compute_bytes_);
    active_ = true;
    alloc_arena_or_less();
    arena_.bind(bound_);
    bound_ = true;
    report_.note_held(budget().held(dev()));
}

void Streamer::unbind() {
    if (std::exchange(bound_, false)) {
        arena_.unbind();
    }
}

void Streamer::deactivate() {
    unbind();
    active_ = false;
    held_compute_bytes_ = 0;
}

// Plans anew with no slot in the compute buffer, which the engine uses in another way than it was planned with.
void Streamer::stop_borrowing(ggml_cgraph* graph) {
    LOG_INFO("module %s: no slot lies in the compute buffer any more", owner_.module.c_str());
    may_borrow_ = false;
    unbind();
    release();
    const uint64_t others = budget().held(dev(), this);
    plan(room_beside(others));
    if (!plan_.feasible && budget().give_up_reserve(dev(), plan_.minimum_budget + others)) {
        budget_ = budget().bytes(dev());
        plan(room_beside(others));
    }
    if (!plan_.feasible) {
        throw_budget_too_small(owner_, runner_, plan_.minimum_budget + others, compute_bytes_, budget_);
    }
    bind(held_compute_bytes_);
    update_views(graph);
}

// Lets the graph's views of weights follow these.
void Streamer::update_views(ggml_cgraph* graph) const {
    each_tensor(graph, [&](ggml_tensor* tensor) {
        if (tensor->view_src != nullptr && params_.count(tensor->view_src) != 0) {
            tensor->buffer = tensor->view_src->buffer;
            tensor->data = static_cast<char*>(tensor->view_src->data) + tensor->view_offs;
        }
    });
}

// --- computing -------------------------------------------------------------------------------------------------------

ggml_status Streamer::compute(ggml_cgraph* graph, bool (*cancelled)()) {
    if (plan_.borrows()) {
        if (keeps("layout") && arena_.borrow(graph, scan_)) {
            update_views(graph);
        } else {
            stop_borrowing(graph);
        }
    }
    const double begin = now();
    const bool loads = arena_.unloaded();
    OnExit undo([this] {
        arena_.end_borrowing();
        queue_.drain();
    });
    const auto start = std::chrono::steady_clock::now();
    const size_t parts = parts_of(*owner_.runtime, scan_.cost());
    const ggml_status status =
        executor_.compute(graph, launches(scan_, plan_, arena_.weights(), graph, parts), parts, lanes_, cancelled);
    if (status != GGML_STATUS_SUCCESS) {
        return status;
    }
    undo.dismiss();
    arena_.end_borrowing();
    report_.add_passes(lanes_, plan_.streamed_bytes);
    if (!loads) {
        note_seconds(*owner_.runtime, scan_.cost(),
                     std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        report_.add_seconds(now() - begin);
    }
    arena_.note_loaded();
    return status;
}

// --- what happened ---------------------------------------------------------------------------------------------------

void Streamer::begin_generation() {
    unbind();
    active_ = false;
    largest_before_ = std::exchange(largest_compute_, 0);
    lanes_before_ = std::exchange(largest_lanes_, 1);
    ceiling_ = UINT64_MAX;
    may_borrow_ = true;
    if (owner_.disk != nullptr) {
        owner_.disk->check();
    }
    executor_.end_gap();
    // That copies take turns although they were to overlap stays true.
    report_.begin_generation(!queue_.overlaps() && owner_.overlap);
}

bool Streamer::describe(sdcpp_stream_t* row) const {
    if (!planned_) {
        return false;
    }
    *row = {};
    report_.describe(scan_, plan_, row);
    row->module = owner_.module.c_str();
    row->runner = runner_.c_str();
    row->device = ggml_backend_dev_name(dev());
    row->mode = plan_.slots.empty() ? "resident" : queue_.overlaps() ? "overlapped" : "in turn";
    row->budget_bytes = budget_;
    row->compute_bytes = compute_bytes_;
    row->copy_seconds = queue_.rate() > 0.0 ? static_cast<double>(plan_.streamed_bytes) / queue_.rate() : -1.0;
    row->stall_seconds = executor_.stall_seconds();
    return true;
}

}  // namespace sdcpp
