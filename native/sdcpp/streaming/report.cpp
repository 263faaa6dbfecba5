#include "sdcpp/streaming/report.h"

#include <algorithm>

namespace sdcpp {

void Report::begin_generation(bool reason_stays) {
    if (!reason_stays) {
        reason_.clear();
    }
    lanes_reason_.clear();
    peak_ = passes_ = graphs_ = copied_ = saved_ = 0;
    lanes_ = 1;
    forget_seconds();
}

void Report::note_held(uint64_t bytes) {
    peak_ = std::max(peak_, bytes);
}

void Report::add_passes(size_t lanes, uint64_t streamed_bytes) {
    ++graphs_;
    passes_ += lanes;
    lanes_ = std::max(lanes_, lanes);
    copied_ += streamed_bytes;
    saved_ += (lanes - 1) * streamed_bytes;
}

void Report::add_seconds(double seconds) {
    ++timed_passes_;
    seconds_ += seconds;
}

void Report::forget_seconds() {
    timed_passes_ = 0;
    seconds_ = 0.0;
}

void Report::describe(const Scan& scan, const StreamPlan& plan, sdcpp_stream_t* row) const {
    static thread_local std::string resident, streamed;
    resident.clear();
    streamed.clear();
    for (size_t i = 0; i < scan.segments.size(); ++i) {
        std::string& list = plan.resident[i] ? resident : streamed;
        list += (list.empty() ? "" : ", ") + scan.segments[i].name;
    }
    row->reason = reason_.c_str();
    row->peak_bytes = peak_;
    row->weight_bytes = scan.weight_bytes();
    row->resident_bytes = plan.resident_bytes;
    row->streamed_bytes = plan.streamed_bytes;
    row->slot_bytes = plan.slot_bytes;
    row->slots = static_cast<int>(plan.slots.size());
    row->borrowed_slots = static_cast<int>(
        std::count_if(plan.slots.begin(), plan.slots.end(), [](const Slot& slot) { return slot.borrows; }));
    row->passes = passes_;
    row->graphs = graphs_;
    row->lanes = static_cast<int>(lanes_);
    row->lanes_reason = lanes_reason_.c_str();
    row->copied_bytes = copied_;
    row->saved_bytes = saved_;
    row->pass_seconds = timed_passes_ > 0 ? seconds_ / static_cast<double>(timed_passes_) : 0.0;
    row->resident = resident.c_str();
    row->streamed = streamed.c_str();
}

}  // namespace sdcpp
