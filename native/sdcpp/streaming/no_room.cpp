#include "sdcpp/streaming/no_room.h"

#include <algorithm>
#include <cctype>

#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/common.h"

namespace sdcpp {

namespace {

std::string subject(const Placement& placement, const std::string& runner) {
    return "module " + placement.module + " (" + runner + ")";
}

std::string device_name(const Placement& placement) {
    return ggml_backend_dev_name(ggml_backend_get_device(placement.runtime_backend));
}

// What backends say of it, in lower case: CUDA, HIP and MUSA, their BLAS libraries, which say it in several ways when a
// handle is made, Vulkan and SYCL.
const char* const no_room_texts[] = {
    "out of memory",         "out_of_memory",          "outofmemory",
    "memoryallocation",      "memory_allocation",      "alloc_failed",
    "resource allocation failed", "library was not initialized", "blas_status_not_initialized",
    "rocblas_status_memory_error", "outofdevicememory",  "out_of_device_memory",
};

// What else helps when a module's graph does not fit.
std::string smaller_pictures(const std::string& module) {
    if (module == "vae") {
        return ", or draw a smaller picture or in smaller tiles (vae_tiling)";
    }
    if (module == "upscaler") {
        return ", or take smaller tiles (tile_size)";
    }
    return module == "diffusion" || module == "controlnet" ? ", or draw a smaller picture" : "";
}

}  // namespace

bool says_no_room(const std::string& text) {
    std::string lower = text;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
    return std::any_of(std::begin(no_room_texts), std::end(no_room_texts),
                       [&](const char* part) { return lower.find(part) != std::string::npos; });
}

std::string no_room_within(const std::string& text) {
    return "a device has no memory left for an operation (" + text +
           "): free some of it, draw a smaller picture, or set a smaller max_vram";
}

void throw_budget_too_small(const Placement& placement, const std::string& runner, uint64_t needed,
                            uint64_t compute_bytes, uint64_t budget) {
    const bool given = placement.placements->memory_budget.is_given(budget);
    const std::string least = in_gib(needed);
    throw NoRoom(subject(placement, runner) + " needs at least " + least + " GiB of " + device_name(placement) +
                 ", of which its compute buffer takes " + in_gib(compute_bytes) + ", but only " + in_gib(budget) +
                 " may be used: " + (given ? "set max_vram to " + least + " or more" : "free memory of the device") +
                 smaller_pictures(placement.module));
}

void throw_arena_refused(const Placement& placement, const std::string& runner, uint64_t bytes) {
    throw NoRoom(subject(placement, runner) + ": " + device_name(placement) + " has no " + in_gib(bytes) +
                 " GiB of memory left, which it needs at least: free some of it" + smaller_pictures(placement.module));
}

void throw_no_room(const Placement& placement, const std::string& runner, const std::string& what) {
    throw NoRoom(subject(placement, runner) + ": " + device_name(placement) + " has no memory left for its " + what +
                 ": free some of it" + (what == "weights" ? ", or set max_vram" : smaller_pictures(placement.module)));
}

}  // namespace sdcpp
