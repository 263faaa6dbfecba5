// Textual inversions: vectors that a word of the prompt stands for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "sdcpp/files/listing.h"

namespace sdcpp::files {

// The vectors of a textual inversion, of each text encoder that it has some for.
struct Embedding {
    size_t count = 0;           // of vectors
    std::vector<float> first;   // count times width
    std::vector<float> second;  // of the second text encoder, where there is one
};

// Reads a textual inversion for text encoders of these widths; second_width is 0 where there is one encoder. Throws
// FileError, whose text begins with the path, when the file holds something else.
Embedding read_embedding(const std::string& path, int64_t width, int64_t second_width);

}  // namespace sdcpp::files
