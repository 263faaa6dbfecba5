// Finding, opening and sharing devices.
#include "sdcpp/placement/device.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "sdcpp/disk/disk_weights.h"
#include "util.h"

namespace sdcpp {

Device::~Device() {
    ggml_backend_free(copies);
    ggml_backend_free(backend);
}

ggml_backend_t Device::copy_backend() {
    if (copies == nullptr) {
        copies = ggml_backend_dev_init(dev, nullptr);
    }
    return copies;
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
