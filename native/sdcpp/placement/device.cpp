// Finding, opening and sharing devices.
#include "sdcpp/placement/device.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "ggml-cpp.h"
#include "sdcpp/disk/disk_weights.h"
#include "util.h"

namespace sdcpp {

Device::~Device() {
    ggml_backend_free(side);
    ggml_backend_free(copies);
    ggml_backend_free(backend);
}

// Opens one of the other instances when it is first asked for.
ggml_backend_t Device::other(ggml_backend_t& instance) {
    if (instance == nullptr) {
        instance = ggml_backend_dev_init(dev, nullptr);
    }
    return instance;
}

ggml_backend_t Device::copy_backend() {
    return other(copies);
}

ggml_backend_t Device::side_backend() {
    return other(side);
}

std::shared_ptr<Device> device_open(ggml_backend_dev_t dev) {
    static std::mutex mutex;
    static std::map<ggml_backend_dev_t, std::weak_ptr<Device>> devices;
    std::lock_guard<std::mutex> lock(mutex);
    auto& known = devices[dev];
    if (auto device = known.lock()) {
        return device;
    }
    ggml_backend_t backend = ggml_backend_dev_init(dev, nullptr);
    if (backend == nullptr) {
        return nullptr;
    }
    auto device = std::make_shared<Device>(dev, backend);
    known = device;
    return device;
}

bool is_cpu(ggml_backend_dev_t dev) {
    return ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

ggml_backend_dev_t cpu_device() {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device == nullptr) {
        throw std::runtime_error("there is no CPU device: the CPU backend module is missing");
    }
    return device;
}

ggml_backend_dev_t default_device() {
    if (const char* number = std::getenv("SD_VK_DEVICE")) {
        if (auto device = ggml_backend_dev_by_name(("Vulkan" + std::string(number)).c_str())) {
            return device;
        }
        LOG_WARN("SD_VK_DEVICE=%s names no Vulkan device; the default device is taken", number);
    }
    for (auto type : {GGML_BACKEND_DEVICE_TYPE_GPU, GGML_BACKEND_DEVICE_TYPE_IGPU}) {
        if (auto device = ggml_backend_dev_by_type(type)) {
            return device;
        }
    }
    return cpu_device();
}

ggml_backend_dev_t named_device(const char* name, const char* module) {
    if (auto device = ggml_backend_dev_by_name(name)) {
        return device;
    }
    std::string names;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        names += (i > 0 ? ", " : "") + std::string(ggml_backend_dev_name(ggml_backend_dev_get(i)));
    }
    throw std::runtime_error("module " + std::string(module) + ": there is no device " + name + ", only " + names);
}

double bus_rate(Device& device) {
    constexpr int64_t bytes = 16 << 20;  // of which the time to begin is no part
    constexpr int tries = 3;             // the first one touches the pages
    ggml_backend_buffer_type_t host = ggml_backend_dev_host_buffer_type(device.dev);
    ggml_backend_buffer_ptr source(host != nullptr ? ggml_backend_buft_alloc_buffer(host, bytes) : nullptr);
    ggml_context_ptr ctx(ggml_init({ggml_tensor_overhead(), nullptr, true}));
    ggml_tensor* const tensor = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, bytes);
    ggml_backend_buffer_ptr target(source ? ggml_backend_alloc_ctx_tensors(ctx.get(), device.backend) : nullptr);
    if (!target || ggml_backend_buffer_get_type(source.get()) != host) {
        return 0.0;
    }
    ggml_backend_buffer_clear(source.get(), 0);
    double rate = 0.0;
    for (int i = 0; i < tries; ++i) {
        const auto begin = std::chrono::steady_clock::now();
        ggml_backend_tensor_set(tensor, ggml_backend_buffer_get_base(source.get()), 0, bytes);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        rate = std::max(rate, static_cast<double>(bytes) / seconds.count());
    }
    return rate;
}

void forget_buffers(ggml_context* ctx) {
    for (auto* tensor = ggml_get_first_tensor(ctx); tensor != nullptr; tensor = ggml_get_next_tensor(ctx, tensor)) {
        if (disk_weights_of(tensor) == nullptr) {
            tensor->buffer = nullptr;
            tensor->data = nullptr;
            tensor->extra = nullptr;
        }
    }
}

}  // namespace sdcpp
