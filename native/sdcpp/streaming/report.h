// What happened to a network's weights in the last generation.
#pragma once

#include <cstdint>
#include <string>

#include "sdcpp/api/sdcpp.h"
#include "sdcpp/streaming/scan.h"
#include "sdcpp/streaming/stream_plan.h"

namespace sdcpp {

class Report {
public:
    // Starts a generation. What the device refused is forgotten, unless `reason_stays`.
    void begin_generation(bool reason_stays);
    // Says what the device refused or does not offer.
    void set_reason(const std::string& reason) { reason_ = reason; }
    // Says why passes that could have been lanes were not.
    void set_lanes_reason(const std::string& reason) { lanes_reason_ = reason; }
    // Notes what the context holds on the device.
    void note_held(uint64_t bytes);
    // Notes that a graph was computed of some passes, for which weights were copied, and how long that took unless it
    // loaded residents.
    void add_passes(size_t lanes, uint64_t streamed_bytes);
    void add_seconds(double seconds);
    // Forgets the seconds of a plan that is followed no more.
    void forget_seconds();

    // Fills in what was noted, and the plan; the text lasts as long as the report, the scan and the plan, and until the
    // next call on this thread.
    void describe(const Scan& scan, const StreamPlan& plan, sdcpp_stream_t* row) const;

private:
    std::string reason_;
    std::string lanes_reason_;
    uint64_t peak_ = 0;
    uint64_t passes_ = 0;
    uint64_t graphs_ = 0;
    size_t lanes_ = 1;  // the most in a graph
    uint64_t copied_ = 0;
    uint64_t saved_ = 0;  // bytes that each pass by itself would have copied, too
    uint64_t timed_passes_ = 0;
    double seconds_ = 0.0;
};

}  // namespace sdcpp
