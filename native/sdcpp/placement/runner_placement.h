// The inside of what one runner was given, for native/'s own files.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "sdcpp/disk/disk_weights.h"
#include "sdcpp/placement/context_placements.h"
#include "sdcpp/placement/device.h"
#include "sdcpp/placement/host_weights.h"
#include "sdcpp/placement/placement.h"
#include "sdcpp/placement/weights_record.h"
#include "sdcpp/streaming/compute_use.h"
#include "sdcpp/streaming/streamer.h"

namespace sdcpp {

class LaneGroup;
class SidePass;

struct Placement {
    std::shared_ptr<Placements> placements;  // NULL before the runner is placed, and for one without a scope
    std::shared_ptr<Device> runtime;
    std::shared_ptr<Device> params;
    ggml_backend_t runtime_backend = nullptr;
    ggml_backend_t params_backend = nullptr;
    bool pin = false;
    bool overlap = false;  // of copies and computations, when the weights are streamed
    std::string module;
    std::shared_ptr<WeightsRecord> record;
    AllocatedWeights weights;
    std::unique_ptr<HostWeights> host;  // NULL: the weights are not in host memory of ours
    std::unique_ptr<DiskWeights> disk;  // NULL: none of them is
    bool on_disk = false;               // as wanted
    ggml_context* unsettled = nullptr;  // the weights, while that is being locked
    std::vector<std::shared_ptr<LaneGroup>> kept;  // of the last graphs, the last one first, while their buffer is there
    std::unique_ptr<Streamer> streamer;  // NULL when nothing is streamed
    std::shared_ptr<char[]> graph_memory;  // of the graph that was built last
    size_t graph_memory_bytes = 0;
    ComputeUses compute_uses;
    std::shared_ptr<LaneGroup> lanes;  // whose graph is built or computed; NULL between two graphs
    std::shared_ptr<SidePass> side;     // NULL: there was none yet
    bool weights_checked = false;  // for values that are not finite
    uint64_t compute_bytes = 0;    // its compute buffer, when it is not streamed but others are
};

// Waits until the weights of a runner that are being locked are, and counts them as pinned, or says why they are not.
void settle(Placement& placement);

}  // namespace sdcpp
