#include "sdcpp/kernels/policy.h"

#include <utility>

namespace {

thread_local bool fast = false;

}  // namespace

bool sdcpp_kernels_fast(void) {
    return fast;
}

bool sdcpp_kernels_fast_set(bool value) {
    return std::exchange(fast, value);
}
