// The passes that have met.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "ggml.h"
#include "sdcpp/api/run.h"
#include "sdcpp/lanes/lanes.h"

namespace sdcpp {

class Pictures;

// A pass that waits for its result.
struct Pass {
    const Placement* placement;
    BuildGraph build;
    std::function<void(ggml_tensor*)> take;
    Sampling sampling;                   // what it is part of
    std::optional<PassInputs> inputs{};  // what it reads; none: not known
    bool done = false;

    const PassInputs* known_inputs() const { return inputs ? &*inputs : nullptr; }
};

// What one thread of a call has come to.
struct Lane {
    std::vector<Pass*> passes;     // that wait, the later ones called from within the earlier ones
    Beside* beside = nullptr;      // the others of the step
    Pictures* pictures = nullptr;  // it draws one of these
};

// The lane of this thread.
Lane*& this_lane();
// What this thread's run samples now.
Sampling sampling_now();

}  // namespace sdcpp
