#include "sdcpp/lanes/graph_inputs.h"

#include <algorithm>
#include <cstring>

namespace sdcpp {

GraphInputs::GraphInputs(const PassInputs* pass, InputMap& inputs, const std::vector<GraphInputs>& others)
    : known_(pass != nullptr) {
    if (known_) {
        pass_ = *pass;
    }
    for (const auto& [tensor, data] : inputs) {
        Input input{tensor, pass_.role_of(data), nullptr, ggml_nbytes(tensor)};
        if (input.role < 0) {
            for (const GraphInputs& other : others) {
                const auto same =
                    std::find_if(other.inputs_.begin(), other.inputs_.end(), [&, from = data](const Input& its) {
                        return its.made != nullptr && its.bytes == input.bytes &&
                               std::memcmp(its.made.get(), from, input.bytes) == 0;
                    });
                if (same != other.inputs_.end()) {
                    input.made = same->made;
                    break;
                }
            }
            if (input.made == nullptr) {
                char* const copy = new char[input.bytes];
                input.made.reset(copy, std::default_delete<const char[]>());
                std::memcpy(copy, data, input.bytes);
            }
        }
        inputs_.push_back(std::move(input));
    }
    inputs.clear();
}

void GraphInputs::give(const PassInputs& pass, InputMap& inputs) const {
    for (const Input& input : inputs_) {
        inputs[input.tensor] = input.role < 0 ? input.made.get() : pass.data(input.role);
    }
}

bool GraphInputs::same_made(const GraphInputs& other) const {
    return serves(other.pass_) && std::equal(inputs_.begin(), inputs_.end(), other.inputs_.begin(), other.inputs_.end(),
                                             [](const Input& a, const Input& b) {
                                                 return a.role == b.role && a.bytes == b.bytes &&
                                                        (a.role >= 0 || a.made == b.made ||
                                                         std::memcmp(a.made.get(), b.made.get(), a.bytes) == 0);
                                             });
}

}  // namespace sdcpp
