// The virtual clock: how long operations take and when the engines of a device are busy.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"

struct loopback_config;
struct loopback_cost;

namespace loopback {

// Virtual time in picoseconds. Sums of integers do not depend on the order of the summands, and the engine's order of
// some copies depends on addresses.
using Time = int64_t;
constexpr Time SECOND = 1000000000000;

Time to_time(double seconds);
double to_seconds(Time time);

// A copy engine or the compute engine of a device, which does one operation at a time.
class Engine {
public:
    struct Interval {
        Time begin;
        Time end;
    };

    // Books work at the first free moment from `ready` on and returns when it is done. Nothing is given to an engine
    // before `host_now`, so older intervals are forgotten.
    Interval reserve(Time ready, Time duration, Time host_now);

    // The part of an interval in which the engine is busy, as far as its intervals are remembered.
    Time overlap(const Interval& interval) const;

    Time busy() const { return busy_time_; }
    void reset();

private:
    std::vector<Interval> intervals_;  // in order, not touching one another
    Time busy_time_ = 0;
};

// True for operations that only reinterpret memory and are never run.
bool is_view_op(const ggml_tensor* node);

// True when the operation reads the bytes of its source, not only its shape.
bool reads_source(const ggml_tensor* node, int source);

// Floating point operations of matrix products, convolutions and attention; 0 for operations limited by memory.
double op_flops(const ggml_tensor* node);

// Bytes that an operation reads and writes.
double op_bytes(const ggml_tensor* node);

// Adds one operation to the cost of a graph.
void add_op(const loopback_config& config, const ggml_tensor* node, loopback_cost& cost);

}  // namespace loopback
