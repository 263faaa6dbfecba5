// Where slots lie, in memory of their own and in the compute buffer: arithmetic only, no ggml.
#pragma once

#include <cstdint>
#include <vector>

#include "sdcpp/streaming/stream_plan.h"

namespace sdcpp {

// Gives the slots their places, and notes what each of their parts waits for. Returns how much of `memory` bytes they
// use.
//
// `buffer` is how many bytes of the compute buffer, from its begin, may be lent to slots, 0 for none.
uint64_t lay_out_slots(const StreamInput& input, std::vector<Slot>& slots, uint64_t memory, uint64_t buffer);

}  // namespace sdcpp
