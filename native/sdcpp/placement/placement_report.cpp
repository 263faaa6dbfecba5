// The C API of what a context's weights occupy and what was copied for them.
#include <string>

#include "sdcpp/api/sdcpp.h"
#include "sdcpp/placement/runner_placement.h"

using namespace sdcpp;

namespace {

std::vector<std::shared_ptr<WeightsRecord>> records_of(const sd_ctx_t* ctx, bool with_empty_loras) {
    return ctx != nullptr ? placements_of(ctx)->used_records(with_empty_loras)
                          : std::vector<std::shared_ptr<WeightsRecord>>{};
}

}  // namespace

int sdcpp_memory_count(const sd_ctx_t* ctx) {
    return static_cast<int>(records_of(ctx, false).size());
}

bool sdcpp_memory_get(const sd_ctx_t* ctx, int index, sdcpp_memory_t* memory) {
    const auto records = records_of(ctx, false);
    if (memory == nullptr || index < 0 || index >= static_cast<int>(records.size())) {
        return false;
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
    *memory = {record.module.c_str(),
               record.runtime_device.c_str(),
               record.params_device.c_str(),
               state.wanted.c_str(),
               types.c_str(),
               state.reason.c_str(),
               state.bytes > 0 && state.pinned_bytes == state.bytes,
               state.bytes,
               state.pinned_bytes,
               state.tensors};
    return true;
}

int sdcpp_transfer_count(const sd_ctx_t* ctx) {
    return static_cast<int>(records_of(ctx, true).size());
}

bool sdcpp_transfer_get(const sd_ctx_t* ctx, int index, sdcpp_transfer_t* transfer) {
    const auto records = records_of(ctx, true);
    if (transfer == nullptr || index < 0 || index >= static_cast<int>(records.size())) {
        return false;
    }
    const WeightsRecord& record = *records[static_cast<size_t>(index)];
    const Transfers moved = record.transfers();
    *transfer = {record.module.c_str(), moved.to_device_pinned, moved.to_device_pageable,
                 moved.from_device,     moved.seconds,          moved.copies};
    return true;
}

int sdcpp_clip_layers(const sd_ctx_t* ctx) {
    return ctx != nullptr ? placements_of(ctx)->clip_layers : 0;
}

int sdcpp_stream_count(const sd_ctx_t* ctx) {
    return ctx != nullptr ? static_cast<int>(placements_of(ctx)->memory_budget.streamers().size()) : 0;
}

bool sdcpp_stream_get(const sd_ctx_t* ctx, int index, sdcpp_stream_t* stream) {
    if (stream == nullptr || index < 0 || index >= sdcpp_stream_count(ctx)) {
        return false;
    }
    return placements_of(ctx)->memory_budget.streamers()[static_cast<size_t>(index)]->describe(stream);
}
