// What tests can replace in a build for them: the clock, and the precautions that keep copies in order.
#pragma once

#include <cstddef>

namespace sdcpp {

// Returns the time in seconds, from any begin.
double now();
// Returns into how many parts each graph is divided for cancelling; 0: into as many as it takes tenths of a second.
size_t test_parts();
// Returns how large the parts of locked memory are, instead of as many bytes as usual.
size_t test_part_bytes(size_t usual);
// Returns how many lanes are taken, as many as that where there are so many passes; 0: as many as the planner chooses.
size_t test_lanes();
// Tells whether each graph is built, also where the last one would do.
bool test_builds_each_graph();
// Tells whether a precaution is to be taken. A test leaves one out to see that the mistake is found.
bool keeps(const char* precaution);

#ifdef SDCPP_TEST_BACKEND
// The clock instead of the system's, in seconds; NULL: none.
extern double (*stream_clock)();
#endif

}  // namespace sdcpp
