// Devices with the backend instances that modules and contexts share.
#pragma once

#include <cstdint>
#include <memory>

#include "ggml-backend.h"

namespace sdcpp {

// A device with the one backend instance that all modules and contexts share while any of them uses it. It needs no
// lock: runs that share a device take turns.
struct Device {
    Device(ggml_backend_dev_t dev, ggml_backend_t backend) : dev(dev), backend(backend) {}
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    // Returns a second instance, whose stream is for copies; NULL when the device gives none.
    ggml_backend_t copy_backend();
    // Returns one that computes at the same time as the first one does; NULL likewise.
    ggml_backend_t side_backend();

    const ggml_backend_dev_t dev;
    const ggml_backend_t backend;
    uint64_t pool_bytes = 0;       // what the backend's pool grew to: it never gives memory back
    double seconds_of_cost = 0.0;  // what the last graph took, next to its cost (streaming/cost.h); 0: none yet

private:
    ggml_backend_t other(ggml_backend_t& instance);

    ggml_backend_t copies = nullptr;
    ggml_backend_t side = nullptr;
};

// Returns the shared instance of a device, opened when nobody uses it yet; NULL when that fails.
std::shared_ptr<Device> device_open(ggml_backend_dev_t dev);

bool is_cpu(ggml_backend_dev_t dev);
// Returns the CPU; throws std::runtime_error without one.
ggml_backend_dev_t cpu_device();
// Returns the engine's own choice: SD_VK_DEVICE, then the first GPU, then the CPU.
ggml_backend_dev_t default_device();
// Returns the device that a caller named for a module; throws std::runtime_error, with the names there are, without it.
ggml_backend_dev_t named_device(const char* name, const char* module);

// Returns the bytes a second that a device takes from its host buffer type; 0 where it has none or refuses the memory.
double bus_rate(Device& device);

// Forgets what the tensors of a failed allocation point to: memory that was freed again. Those on disk stay there.
void forget_buffers(ggml_context* ctx);

}  // namespace sdcpp
