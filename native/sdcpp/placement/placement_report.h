// Rows of the reports on what a context's weights occupy, what was copied for them and how they were streamed.
#pragma once

#include "sdcpp/api/sdcpp.h"

namespace sdcpp {

class Placements;

// What filling in a row came to.
enum class Filled { row, none, end };

// Fill in one row of a context's reports, counted from 0; the strings last until this thread's next call.
Filled memory_row(const Placements& placements, int index, sdcpp_memory_t& row);
Filled transfer_row(const Placements& placements, int index, sdcpp_transfer_t& row);
Filled stream_row(const Placements& placements, int index, sdcpp_stream_t& row);

}  // namespace sdcpp
