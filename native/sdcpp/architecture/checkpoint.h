// Reading sizes from the names and shapes of a checkpoint's tensors: what the network families share.
//
// Everything that throws says in one sentence, as std::runtime_error, what is wrong with which tensor.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model.h"
#include "util.h"

namespace sdcpp::checkpoint {

constexpr int64_t head_width = 64;  // of CLIP, and of the networks that fix a head's channels instead of the heads

// Bounds on what a file can ask for, far above every published model, so that the engine's tables cannot overflow.
constexpr int64_t max_width = 1 << 20;
constexpr int max_layers = 256;
constexpr int max_res_blocks = 4;

// Throws std::runtime_error.
[[noreturn]] void fail(const char* format, ...);

// Returns a shape as the checkpoint's file has it: the slowest axis first.
std::string shape_text(const int64_t* ne, int dims);
std::string shape_text(const TensorStorage& tensor);

// Returns a tensor of the checkpoint, or NULL.
const TensorStorage* find(const String2TensorStorage& file, const std::string& name);
bool has(const String2TensorStorage& file, const std::string& name);
// Returns the size of a tensor along an axis (0: the fastest), or a default when the checkpoint has no such tensor.
int64_t axis(const String2TensorStorage& file, const std::string& name, int index, int64_t otherwise);
// Returns the number of layers: one more than the highest index i in the names that begin with prefix + i + ".".
int64_t layers(const String2TensorStorage& file, const std::string& prefix, int64_t otherwise);
// Returns the number of names prefix + i + suffix, i = 0, 1, ..., that the checkpoint holds without a gap.
int count(const String2TensorStorage& file, const std::string& prefix, const std::string& suffix, int limit);
// Throws unless a size is a multiple of another one, which `what` names.
void require_multiple(const String2TensorStorage& file, const std::string& name, int64_t size, int64_t of,
                      const char* what);
// Returns the width of a normalised layer, which its groups must divide.
int64_t group_width(const String2TensorStorage& file, const std::string& name, int index, int64_t otherwise);
// Returns the rows of a token embedding, which must reach to the tokenizer's last token.
int64_t token_rows(const String2TensorStorage& file, const std::string& name, int64_t tokens);

// Shares a head's width among the rope's axes as the published model does.
template <typename Sum>
void scale_axes(const std::string& name, int64_t head_dim, std::vector<int>& axes, Sum& sum) {
    for (int& axis : axes) {
        const int64_t scaled = axis * head_dim;
        if (scaled % (2 * sum) != 0) {
            fail("tensor '%s': a head of %lld values cannot be shared among the axes of the positions", name.c_str(),
                 static_cast<long long>(head_dim));
        }
        axis = static_cast<int>(scaled / sum);
    }
    sum = static_cast<Sum>(head_dim);
}

// --- parameters: the tensors that the networks were built with ---

using Params = std::map<std::string, ggml_tensor*>;

// Returns the size of a parameter along an axis; 0 when there is none of that name.
int64_t param_axis(const Params& params, const std::string& name, int index);
// Throws unless two modules agree on a width; a width of 0 is one of a module that is not there.
void require_fit(const std::string& name, int64_t takes, const char* what, int64_t gives);
// Throws where a model that cannot do without text has no encoder for it.
void require_encoder(const Params& params);

}  // namespace sdcpp::checkpoint
