#include "sdcpp/threads/pieces.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>

#include "sdcpp/threads/team.h"

namespace {

// What is read and written within some hundredths of a millisecond: a thread that others take the processor from leaves
// the rest to those that have theirs.
constexpr size_t usual_bytes = 256u << 10;
// One thread divides for nothing but the looks, after some hundredths of a second.
constexpr size_t alone_bytes = 32u << 20;
constexpr size_t most_pieces = 1024;
// The padding between the rows that threads have in the work buffer is a cache line, whose size is the compiler's.
constexpr size_t longest_line = 256;

std::atomic<size_t> piece_bytes{0};

// Operations that give each thread rows by its number, with no thread waiting for another and none that does the work
// of all. Those that are not here are short, or look for themselves.
bool is_divided_by_rows(const ggml_tensor& node) {
    switch (node.op) {
        case GGML_OP_ADD:
        case GGML_OP_CLAMP:
        case GGML_OP_CONCAT:
        case GGML_OP_CONT:
        case GGML_OP_CONV_2D_DW:
        case GGML_OP_COS:
        case GGML_OP_CPY:
        case GGML_OP_DIV:
        case GGML_OP_DUP:
        case GGML_OP_GET_ROWS:
        case GGML_OP_GLU:
        case GGML_OP_GROUP_NORM:
        case GGML_OP_L2_NORM:
        case GGML_OP_LOG:
        case GGML_OP_MUL:
        case GGML_OP_NORM:
        case GGML_OP_PAD:
        case GGML_OP_RMS_NORM:
        case GGML_OP_SCALE:
        case GGML_OP_SIN:
        case GGML_OP_SOFT_MAX:
        case GGML_OP_SQR:
        case GGML_OP_SQRT:
        case GGML_OP_SUB:
        case GGML_OP_UNARY:
        case GGML_OP_UPSCALE:
            return true;
        default:
            return false;
    }
}

// What each thread has of the work buffer: a row of floats and a cache line, which lie where the thread's number says.
size_t row_bytes_of(const ggml_tensor& node) {
    switch (node.op) {
        case GGML_OP_ADD:
        case GGML_OP_CONT:
        case GGML_OP_CPY:
        case GGML_OP_DUP:
        case GGML_OP_SOFT_MAX:
            return static_cast<size_t>(node.src[0]->ne[0]) * sizeof(float);
        default:
            return 0;
    }
}

size_t bytes_used(const ggml_tensor& node) {
    size_t bytes = ggml_nbytes(&node);
    for (const ggml_tensor* source : node.src) {
        bytes += source != nullptr ? ggml_nbytes(source) : 0;
    }
    return bytes;
}

}  // namespace

namespace sdcpp {

Pieces::Pieces(const ggml_compute_params& thread, const ggml_tensor& node) : thread(thread), piece(thread) {
    if (is_divided_by_rows(node)) {
        const size_t asked = piece_bytes.load(std::memory_order_relaxed);
        const size_t bytes = asked > 0 ? asked : thread.nth > 1 ? usual_bytes : alone_bytes;
        const size_t each = bytes * static_cast<size_t>(thread.nth);
        const auto times = static_cast<int>(std::clamp<size_t>(bytes_used(node) / each, 1, most_pieces));
        count = thread.nth * times;
        row_bytes = row_bytes_of(node);
        if (times > 1 && row_bytes > 0) {
            row.reset(new char[row_bytes + longest_line * static_cast<size_t>(count + 1)]);
        }
    }
}

ggml_compute_params* Pieces::next() {
    if (count == 0) {
        return std::exchange(begun, true) ? nullptr : &piece;
    }
    if (begun) {
        sdcpp_team_finish(count);
    }
    piece.ith = static_cast<int>(sdcpp_team_take(count));
    if (piece.ith < 0) {
        return nullptr;
    }
    begun = true;
    piece.nth = count;
    if (row != nullptr) {
        // The operation goes as many rows and cache lines on as its number says: it ends in this thread's row, some
        // cache lines behind its begin.
        const auto begin = (reinterpret_cast<uintptr_t>(row.get()) + longest_line - 1) / longest_line * longest_line;
        piece.wdata = reinterpret_cast<void*>(begin - static_cast<uintptr_t>(piece.ith) * row_bytes);
    }
    return &piece;
}

}  // namespace sdcpp

void sdcpp_piece_bytes_set(size_t bytes) {
    piece_bytes = bytes;
}
