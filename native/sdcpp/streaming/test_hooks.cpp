#include "sdcpp/streaming/test_hooks.h"

#include <chrono>
#include <cstdlib>
#include <cstring>

namespace sdcpp {

#ifdef SDCPP_TEST_BACKEND
double (*stream_clock)() = nullptr;

bool keeps(const char* precaution) {
    static const char* const left_out = std::getenv("SDCPP_LEAVE_OUT");
    return left_out == nullptr || std::strcmp(left_out, precaution) != 0;
}
size_t test_parts() {
    const char* const parts = std::getenv("SDCPP_GRAPH_PARTS");
    return parts != nullptr ? std::strtoul(parts, nullptr, 10) : 0;
}

size_t test_part_bytes(size_t usual) {
    const char* const bytes = std::getenv("SDCPP_PART_BYTES");
    return bytes != nullptr ? std::strtoul(bytes, nullptr, 10) : usual;
}

size_t test_lanes() {
    const char* const lanes = std::getenv("SDCPP_LANES");
    return lanes != nullptr ? std::strtoul(lanes, nullptr, 10) : 0;
}

bool test_builds_each_graph() {
    return std::getenv("SDCPP_BUILD_EACH_GRAPH") != nullptr;
}
#else
size_t test_lanes() {
    return 0;
}

bool test_builds_each_graph() {
    return false;
}

size_t test_part_bytes(size_t usual) {
    return usual;
}

size_t test_parts() {
    return 0;
}

bool keeps(const char*) {
    return true;
}
#endif

double now() {
#ifdef SDCPP_TEST_BACKEND
    if (stream_clock != nullptr) {
        return stream_clock();
    }
#endif
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace sdcpp
