#include "sdcpp/threads/profile.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace {

// Returns the seconds that this thread computed, which others on a busy machine do not add to, where that is known.
double seconds_now() {
#ifdef CLOCK_THREAD_CPUTIME_ID
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
#else
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
#endif
}

struct Row {
    int nodes = 0;
    double seconds = 0.0;
    double flops = 0.0;
};

std::atomic<bool> measuring{false};
std::mutex mutex;
std::map<std::string, Row> rows;  // guarded by the mutex

thread_local const ggml_tensor* current = nullptr;
thread_local double begun = 0.0;

// An operation with the types and the shape of what it computes of, where products are concerned.
std::string name_of(const ggml_tensor& node) {
    if (node.op == GGML_OP_UNARY) {
        return ggml_unary_op_name(ggml_get_unary_op(&node));
    }
    const ggml_tensor* const first = node.src[0];
    const ggml_tensor* const second = node.src[1];
    if (node.op != GGML_OP_MUL_MAT && node.op != GGML_OP_CONV_2D) {
        return ggml_op_name(node.op);
    }
    char text[160];
    const auto* const a = first->ne;
    const auto* const b = second->ne;
    std::snprintf(text, sizeof(text), "%s %s %dx%dx%dx%d %s %dx%dx%dx%d", ggml_op_name(node.op),
                  ggml_type_name(first->type), int(a[0]), int(a[1]), int(a[2]), int(a[3]), ggml_type_name(second->type),
                  int(b[0]), int(b[1]), int(b[2]), int(b[3]));
    return text;
}

double flops_of(const ggml_tensor& node) {
    const double results = static_cast<double>(ggml_nelements(&node));
    const auto* const depth = node.src[0] != nullptr ? node.src[0]->ne : nullptr;
    switch (node.op) {
        case GGML_OP_MUL_MAT:
            return 2.0 * results * static_cast<double>(depth[0]);
        case GGML_OP_CONV_2D:
            return 2.0 * results * static_cast<double>(depth[0] * depth[1] * depth[2]);
        default:
            return 0.0;
    }
}

}  // namespace

namespace sdcpp {

void profile_node(const ggml_tensor* node) {
    if (!measuring.load(std::memory_order_relaxed) && current == nullptr) {
        return;
    }
    const double now = seconds_now();
    if (const ggml_tensor* const last = std::exchange(current, node)) {
        const std::lock_guard<std::mutex> lock(mutex);
        Row& row = rows[name_of(*last)];
        ++row.nodes;
        row.seconds += now - begun;
        row.flops += flops_of(*last);
    }
    begun = now;
}

}  // namespace sdcpp

void sdcpp_profile(bool on) {
    const std::lock_guard<std::mutex> lock(mutex);
    rows.clear();
    measuring = on;
}

bool sdcpp_profile_row(int index, const char** name, int* nodes, double* seconds, double* flops) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (index < 0 || static_cast<size_t>(index) >= rows.size()) {
        return false;
    }
    const auto row = std::next(rows.begin(), index);
    *name = row->first.c_str();
    *nodes = row->second.nodes;
    *seconds = row->second.seconds;
    *flops = row->second.flops;
    return true;
}
