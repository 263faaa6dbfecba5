// Divides a node into pieces that threads take when they are free, and between which they look whether the graph is
// over: each computes what several threads of a larger team would, one after another. Each value comes of the same
// arithmetic.
#pragma once

#include <cstddef>
#include <memory>

#include "ggml-cpu/ggml-cpu-impl.h"

namespace sdcpp {

class Pieces {
public:
    // Divides what a thread computes of a node, as far as its operation divides rows by nothing but the threads'
    // numbers.
    Pieces(const ggml_compute_params& thread, const ggml_tensor& node);
    // Returns what to compute next; NULL: nothing more.
    ggml_compute_params* next();

private:
    const ggml_compute_params& thread;
    ggml_compute_params piece;
    size_t row_bytes = 0;         // of the row that each thread has in the work buffer
    std::unique_ptr<char[]> row;  // this thread's while there are pieces
    int count = 0;                // of all threads' pieces; 0: it is not divided
    bool begun = false;           // a piece
};

}  // namespace sdcpp

// Sets how many bytes a piece reads and writes; 0: what is best. For tests.
extern "C" {
GGML_API void sdcpp_piece_bytes_set(size_t bytes);
}
