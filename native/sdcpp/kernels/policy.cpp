#include "sdcpp/kernels/policy.h"

#include <utility>

namespace {

thread_local bool fast = false;
thread_local bool same = false;

}  // namespace

bool sdcpp_kernels_fast(void) {
    return fast;
}

bool sdcpp_kernels_fast_set(bool value) {
    return std::exchange(fast, value);
}

bool sdcpp_graphs_same(void) {
    return same;
}

bool sdcpp_graphs_same_set(bool value) {
    return std::exchange(same, value);
}
