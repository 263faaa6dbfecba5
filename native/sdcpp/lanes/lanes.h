// Passes of a denoiser that are computed side by side, as lanes, so that a weight that is streamed is copied once for
// all of them. Everything here is called by the engine's own lines; the words:
//   pass   one computation of the denoiser
//   lane   one of several passes that are computed as one graph
//   meet   what a pass does before its graph is built: it lets the others come as far as that
//   lead   build and compute the graph of several passes that have met; the others follow
// Passes of one step (its conditions) run on one thread: a body that ends in a pass is called from within the meeting
// of the one before it (Beside). Pictures run on threads of their own, of which never more than one runs at a time, so
// that the engine's code keeps the meaning that it has on one thread (each_picture).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ggml.h"
#include "sdcpp/lanes/graph_inputs.h"
#include "sdcpp/lanes/pass_inputs.h"

class RNG;

namespace sdcpp {

struct Placement;

using BuildGraph = std::function<ggml_cgraph*()>;

// What a runner builds its graphs with.
struct GraphMaker {
    std::string network;     // the engine's name of it
    ggml_context* params;    // its weights
    ggml_context*& tensors;  // where the tensors of its graphs are made
    InputMap& inputs;        // what will be copied into some of them
};

// Lets a pass meet the others. Returns true when one of those has computed it and has given its result to `take`. Else
// the runner computes what `build` builds from then on: a graph of this pass and of those that it leads.
bool lane_meet(Placement& placement, const GraphMaker& maker, BuildGraph& build,
               std::function<void(ggml_tensor*)> take);
// Tells whether the last graph is computed again, with other inputs: nothing is built, planned or allocated for it
// then.
bool computes_again(const Placement& placement);
bool computes_again(const Placement& placement, ggml_cgraph** graph);
// Gives the passes that followed the one whose graph was just computed their results, and keeps the graph. Returns that
// one's own result; `named` has its name in what the runner built last.
ggml_tensor* lanes_take(Placement& placement, ggml_tensor* named);
// Forgets the graphs that were kept, as their compute buffer or the weights are elsewhere now.
void forget_graphs(Placement& placement);

// Passes that may be computed with the one that comes next on this thread, which belongs to the same step.
class Beside {
public:
    // Each body ends in one pass. `independent`: none needs what another one gives.
    Beside(bool independent, std::vector<std::function<void()>> bodies);
    ~Beside();
    Beside(const Beside&) = delete;
    Beside& operator=(const Beside&) = delete;

    // Runs a body, unless it has run beside another one.
    void run(size_t index);

    // For the meeting: runs the first body that has not run; false when there is none.
    bool run_next();
    bool independent() const { return independent_; }

private:
    const bool independent_;
    std::vector<std::function<void()>> bodies_;  // empty ones have run
    Beside* const outer_;
};

// Calls `draw` with the number of each picture: one after another, or side by side on threads of their own, as far as
// that lets streamed weights be copied less often. Each finds generators of its own, to be seeded, of the same kinds
// and shared as before; its sampler keeps them. Returns false when one of the calls did; the others are given up then.
bool each_picture(int count, std::shared_ptr<RNG>& noise, std::shared_ptr<RNG>& sampler,
                  const std::function<bool(int)>& draw);

// Runs a function on the thread that makes the engine's call, where this is a picture's own thread: the caller's
// threads for computing and its callbacks belong there.
void on_caller(const std::function<void()>& function);

}  // namespace sdcpp
