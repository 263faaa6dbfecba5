// The planner of streaming as a library of its own, so that tests can ask it without a model or a device.
#include <vector>

#include "sdcpp/streaming/stream_plan.h"

#pragma GCC visibility push(default)
extern "C" {
// cdef begin

// A plan, but for its lists.
typedef struct stream_plan_result {
    int32_t feasible;
    int32_t slot_count;
    int32_t parts;  // of all slots
    uint64_t minimum_budget;
    uint64_t slot_bytes;
    uint64_t resident_bytes;
    uint64_t streamed_bytes;
    uint64_t peak_bytes;
    uint64_t arena_bytes;
    double seconds;  // of a graph, for the two rates that were given
} stream_plan_result;

// A slot.
typedef struct stream_plan_slot {
    uint64_t bytes;
    uint64_t offset;
    int32_t borrows;
} stream_plan_slot;

// A part of a slot.
typedef struct stream_plan_part {
    int32_t slot;
    uint64_t begin;
    uint64_t end;
    uint64_t back;
} stream_plan_part;

// Plans for segments of given bytes, costs and heights in the compute buffer. For each segment, slot_of receives its
// slot, or -1: resident, or -2: neither, or -3: both; slots has room for as many as there are segments, parts for
// most_parts.
void stream_plan_probe(const uint64_t* bytes, const double* costs, const uint64_t* heights, int32_t segments,
                       uint64_t alignment, uint64_t budget, uint64_t compute_bytes, uint64_t compute_buffer,
                       uint64_t fixed_bytes, int32_t overlap, double seconds_per_byte, double seconds_per_cost,
                       stream_plan_result* result, int32_t* slot_of, stream_plan_slot* slots, stream_plan_part* parts,
                       int32_t most_parts);

// cdef end

void stream_plan_probe(const uint64_t* bytes, const double* costs, const uint64_t* heights, int32_t segments,
                       uint64_t alignment, uint64_t budget, uint64_t compute_bytes, uint64_t compute_buffer,
                       uint64_t fixed_bytes, int32_t overlap, double seconds_per_byte, double seconds_per_cost,
                       stream_plan_result* result, int32_t* slot_of, stream_plan_slot* slots, stream_plan_part* parts,
                       int32_t most_parts) {
    sdcpp::StreamInput input;
    for (int32_t i = 0; i < segments; ++i) {
        sdcpp::Segment segment;
        segment.bytes = bytes[i];
        segment.cost = costs[i];
        segment.height = heights[i];
        input.segments.push_back(segment);
    }
    input.alignment = alignment;
    input.budget = budget;
    input.compute_bytes = compute_bytes;
    input.compute_buffer = compute_buffer;
    input.fixed_bytes = fixed_bytes;
    input.overlap = overlap != 0;
    const sdcpp::StreamPlan plan = sdcpp::stream_plan(input);
    *result = {plan.feasible,
               static_cast<int32_t>(plan.slots.size()),
               0,
               plan.minimum_budget,
               plan.slot_bytes,
               plan.resident_bytes,
               plan.streamed_bytes,
               plan.peak_bytes,
               plan.arena_bytes(),
               0.0};
    if (!plan.feasible) {
        return;
    }
    result->seconds = sdcpp::stream_seconds(input, plan, seconds_per_byte, seconds_per_cost);
    for (size_t i = 0; i < input.segments.size(); ++i) {
        slot_of[i] = plan.resident[i] ? -1 : -2;
    }
    for (size_t i = 0; i < plan.slots.size(); ++i) {
        const sdcpp::Slot& slot = plan.slots[i];
        slots[i] = {slot.bytes, slot.offset, slot.borrows};
        for (const sdcpp::SlotPart& part : slot.parts) {
            if (result->parts < most_parts) {
                parts[result->parts] = {static_cast<int32_t>(i), part.begin, part.end, part.back};
            }
            ++result->parts;
        }
        for (size_t segment : slot.segments) {
            slot_of[segment] = slot_of[segment] == -2 ? static_cast<int32_t>(i) : -3;
        }
    }
}

}  // extern "C"
#pragma GCC visibility pop
