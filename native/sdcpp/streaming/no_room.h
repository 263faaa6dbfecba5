// The errors of too little device memory, which say what would do. All are a NoRoom (seams.h).
#pragma once

#include <cstdint>
#include <string>

namespace sdcpp {

struct Placement;

// The budget is smaller than what a runner's graph needs with everything else that the context must hold.
[[noreturn]] void throw_budget_too_small(const Placement& placement, const std::string& runner, uint64_t needed,
                                         uint64_t compute_bytes, uint64_t budget);
// The device refused the smallest arena that works for a runner.
[[noreturn]] void throw_arena_refused(const Placement& placement, const std::string& runner, uint64_t bytes);
// Tells whether what a backend said of a failure means that a device has no memory left.
bool says_no_room(const std::string& text);
// Returns what a caller is told when a device runs out of memory within an operation, of which it said `text`.
std::string no_room_within(const std::string& text);
// The device refused memory for a runner's `what`.
[[noreturn]] void throw_no_room(const Placement& placement, const std::string& runner, const std::string& what);

}  // namespace sdcpp
