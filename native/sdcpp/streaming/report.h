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
    // Notes what the context holds on the device.
    void note_held(uint64_t bytes);
    // Notes that a graph was computed, and how long that took unless it loaded residents.
    void add_pass() { ++passes_; }
    void add_seconds(double seconds);
    // Forgets the seconds of a plan that is followed no more.
    void forget_seconds();

    // Fills in what was noted, and the plan; the text lasts as long as the report, the scan and the plan, and until the
    // next call on this thread.
    void describe(const Scan& scan, const StreamPlan& plan, sdcpp_stream_t* row) const;

private:
    std::string reason_;
    uint64_t peak_ = 0;
    uint64_t passes_ = 0;
    uint64_t timed_passes_ = 0;
    double seconds_ = 0.0;
};

}  // namespace sdcpp
