// What is copied into the inputs of one pass's graph: what the pass reads, and what the engine made for its shapes when
// it built the graph, such as positions. With that the graph serves for other passes, too.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <vector>

#include "ggml.h"
#include "sdcpp/lanes/pass_inputs.h"

namespace sdcpp {

using InputMap = std::map<ggml_tensor*, const void*>;

class GraphInputs {
public:
    // Takes the inputs of the graph that was built last out of the runner's, which keeps some only until it builds
    // another one. What the pass reads stays where it is while the pass waits; NULL: that is not known, and all is
    // copied. What another graph has as well is shared with it.
    GraphInputs(const PassInputs* pass, InputMap& inputs, const std::vector<GraphInputs>& others);

    // Tells whether a pass has the same graph.
    bool serves(const PassInputs& pass) const { return known_ && pass_.same_graph(pass); }
    // Gives the runner the inputs for a pass that it serves, or for its own.
    void give(const PassInputs& pass, InputMap& inputs) const;
    void give(InputMap& inputs) const { give(pass_, inputs); }
    // Tells whether the engine made the same for two graphs, which serve the same passes.
    bool same_made(const GraphInputs& other) const;

private:
    struct Input {
        ggml_tensor* tensor;
        int role;                          // of what the pass reads; -1: the engine made it
        std::shared_ptr<const char> made;  // what that is
        size_t bytes;
    };
    PassInputs pass_;
    bool known_;
    std::vector<Input> inputs_;
};

}  // namespace sdcpp
