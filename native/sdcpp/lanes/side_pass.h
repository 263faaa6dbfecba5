// A second pass of a network whose weights stay on its device, computed while the first one is: on an instance of the
// device of its own, with a compute buffer of its own, so that it is computed as it is alone, bit by bit. The kernels of
// a small pass do not fill a large device, and the host builds this pass while the device computes the first one.
#pragma once

#include <cstdint>
#include <map>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

namespace sdcpp {

struct Placement;

class SidePass {
public:
    // For a runner that was placed.
    explicit SidePass(Placement& owner) : owner_(owner) {}
    ~SidePass() { release(); }
    SidePass(const SidePass&) = delete;
    SidePass& operator=(const SidePass&) = delete;

    // Tells whether a runner's passes can be computed so: its device has our kernels, computes asynchronously, and the
    // weights stay there.
    static bool is_possible(const Placement& placement);
    // Tells whether there is memory for that, and whether it gains time, for passes like the one with this graph.
    bool pays(ggml_cgraph* graph);
    // Gives a graph its memory, and its inputs what they hold; false where it cannot be computed: there is no memory for
    // it, or it shares values with the first pass.
    bool prepare(ggml_cgraph* graph, const std::map<ggml_tensor*, const void*>& inputs);
    // Computes it.
    bool compute(ggml_cgraph* graph);
    // Frees its memory.
    void release();

private:
    uint64_t wanted(ggml_cgraph* graph) const;
    bool has_room(uint64_t more) const;
    bool alloc(ggml_cgraph* graph);

    Placement& owner_;
    ggml_gallocr_ptr allocator_;
    uint64_t bytes_ = 0;  // that are counted for it in the context's books
};

}  // namespace sdcpp
