// Rows of the reports on what a context's weights occupy, what was copied for them and how they were streamed.
#include "sdcpp/placement/placement_report.h"

#include <string>

#include "sdcpp/placement/context_placements.h"
#include "sdcpp/streaming/streamer.h"

namespace sdcpp {

Filled memory_row(const Placements& placements, int index, sdcpp_memory_t& row) {
    const auto records = placements.used_records(false);
    if (index >= static_cast<int>(records.size())) {
        return Filled::end;
    }
    const WeightsRecord& record = *records[static_cast<size_t>(index)];
    // Kept here for the caller, who copies them before the next call.
    static thread_local Memory state;
    static thread_local std::string types;
    state = record.memory();
    types.clear();
    for (const auto& [type, bytes] : state.per_type) {
        types += (types.empty() ? "" : "+") + type;
    }
    row = {record.module.c_str(),
           record.runtime_device.c_str(),
           record.params_device.c_str(),
           state.wanted.c_str(),
           types.c_str(),
           state.reason.c_str(),
           state.bytes > 0 && state.pinned_bytes == state.bytes,
           state.bytes,
           state.pinned_bytes,
           state.disk_bytes,
           state.tensors};
    return Filled::row;
}

Filled transfer_row(const Placements& placements, int index, sdcpp_transfer_t& row) {
    const auto records = placements.used_records(true);
    if (index >= static_cast<int>(records.size())) {
        return Filled::end;
    }
    const WeightsRecord& record = *records[static_cast<size_t>(index)];
    const Transfers moved = record.transfers();
    row = {record.module.c_str(), moved.to_device_pinned, moved.to_device_pageable, moved.from_device,
           moved.seconds,         moved.copies,           moved.from_disk,          moved.disk_seconds};
    return Filled::row;
}

Filled stream_row(const Placements& placements, int index, sdcpp_stream_t& row) {
    const auto& streamers = placements.memory_budget.streamers();
    if (index >= static_cast<int>(streamers.size())) {
        return Filled::end;
    }
    return streamers[static_cast<size_t>(index)]->describe(&row) ? Filled::row : Filled::none;
}

}  // namespace sdcpp
