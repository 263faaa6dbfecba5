// Resolving the placements of a context's modules.
#include "sdcpp/placement/context_placements.h"

#include <set>
#include <stdexcept>
#include <utility>

#include "model.h"
#include "sdcpp/placement/runner_placement.h"
#include "util.h"

namespace sdcpp {

Placements::Placements(const sd_ctx_params_t* params)
    : parts(own_files(*params)),
      type_rules(params->tensor_type_rules != nullptr ? params->tensor_type_rules : ""),
      fast_kernels(params->kernels == SD_KERNELS_FAST),
      memory_budget(*this, params->max_vram) {
    const ggml_backend_dev_t cpu = cpu_device();
    default_dev = default_device();
    for (const auto& name : module_names) {
        const bool keep = (name == "te" && params->keep_clip_on_cpu) || (name == "vae" && params->keep_vae_on_cpu) ||
                          (name == "controlnet" && params->keep_control_net_on_cpu);
        ModulePlacement& place = modules[name];
        place.runtime = keep ? cpu : default_dev;
        place.params = params->offload_params_to_cpu ? cpu : place.runtime;
    }
}

void Placements::apply(const sdcpp_placement_t* placements, int count) {
    std::map<std::string, int> seen;
    for (int i = 0; i < count; ++i) {
        const sdcpp_placement_t& wanted = placements[i];
        const std::string name = wanted.module != nullptr ? wanted.module : "";
        const auto found = modules.find(name);
        if (found == modules.end()) {
            std::string known;
            for (const auto& module : module_names) {
                known += (known.empty() ? "" : ", ") + module;
            }
            throw std::runtime_error("there is no module " + name + ", only " + known);
        }
        if (++seen[name] > 1) {
            throw std::runtime_error("module " + name + " is placed twice");
        }
        ModulePlacement& place = found->second;
        place.placed = true;
        place.named = wanted.runtime_device != nullptr;
        place.runtime = place.named ? named_device(wanted.runtime_device, wanted.module) : default_dev;
        place.disk = wanted.params_device != nullptr && wanted.params_device == std::string("disk");
        place.params = place.disk                        ? cpu_device()
                       : wanted.params_device != nullptr ? named_device(wanted.params_device, wanted.module)
                                                         : place.runtime;
        place.keep_bytes = wanted.keep_bytes;
        place.past_cache = wanted.past_cache;
        if (place.disk && (is_cpu(place.runtime) || !wanted.stream)) {
            throw std::runtime_error("module " + name + ": weights on disk have to be streamed to another device than " +
                                     "the CPU");
        }
        place.pin = wanted.pin;
        place.stream = wanted.stream;
        place.overlap = wanted.overlap;
    }
}

std::vector<ggml_backend_dev_t> Placements::runtime_devices() const {
    std::set<ggml_backend_dev_t> found;
    for (const auto& record : records) {
        found.insert(ggml_backend_dev_by_name(record->runtime_device.c_str()));
    }
    for (const auto& [name, place] : modules) {
        if (records.empty() && place.placed) {
            found.insert(place.runtime);
        }
    }
    if (found.empty()) {
        found = {default_dev, cpu_device()};
    }
    return {found.begin(), found.end()};
}

void Placements::synchronize() const {
    for (const auto& device : devices) {
        ggml_backend_synchronize(device->backend);
    }
}

void Placements::survey_begin(ggml_backend_dev_t dev, bool pictures) {
    for (auto& [name, place] : modules) {
        place = ModulePlacement{};
        place.runtime = place.params = dev != nullptr ? dev : cpu_device();
    }
    survey = true;
    survey_pictures = pictures;
}

const sd_ctx_params_t* Placements::load_begin(const sd_ctx_params_t* params) {
    loading = true;
    without_flags = *params;
    without_flags.offload_params_to_cpu = without_flags.keep_clip_on_cpu = without_flags.keep_vae_on_cpu =
        without_flags.keep_control_net_on_cpu = false;
    return &without_flags;
}

void Placements::load_waiting() {
    loading = false;
    for (const auto& allocate : std::exchange(waiting, {})) {
        allocate();
    }
}

void Placements::settle() {
    while (!unsettled.empty()) {
        sdcpp::settle(*unsettled.back());
    }
}

void Placements::load_end() {
    loading = false;
    waiting.clear();
}

std::shared_ptr<Device> Placements::open(ggml_backend_dev_t dev) {
    for (const auto& device : devices) {
        if (device->dev == dev) {
            return device;
        }
    }
    auto device = device_open(dev);
    if (!device) {
        throw std::runtime_error(std::string("device ") + ggml_backend_dev_name(dev) + " cannot be opened");
    }
    devices.push_back(device);
    return device;
}

std::shared_ptr<Device> Placements::open_runtime(const std::string& module) {
    ModulePlacement& place = modules.at(module);
    if (!place.named && !is_cpu(place.runtime) && !device_open(place.runtime)) {
        LOG_WARN("device %s cannot be opened; module %s runs on the CPU", ggml_backend_dev_name(place.runtime),
                 module.c_str());
        place.runtime = place.params = cpu_device();
    }
    return open(place.runtime);
}

const ModulePlacement& Placements::wanted(const std::string& module) const {
    return modules.at(module);
}

std::shared_ptr<WeightsRecord> Placements::record(const std::string& name, const Device& runtime,
                                                  const std::string& params) {
    for (const auto& record : records) {
        if (record->module == name) {
            return record;
        }
    }
    records.push_back(
        std::make_shared<WeightsRecord>(name, ggml_backend_dev_name(runtime.dev), params));
    return records.back();
}

std::vector<std::shared_ptr<WeightsRecord>> Placements::used_records(bool with_empty_loras) const {
    std::vector<std::shared_ptr<WeightsRecord>> found;
    for (const auto& record : records) {
        if (record->used() && (!is_lora(record->module) || with_empty_loras || record->memory().bytes > 0)) {
            found.push_back(record);
        }
    }
    return found;
}

std::shared_ptr<ReadAhead>& Placements::read_ahead(ggml_backend_dev_t dev) {
    auto& found = reads_ahead[dev];
    if (found == nullptr) {
        found = std::make_shared<ReadAhead>(dev);
    }
    return found;
}

uint64_t Placements::weights_on(ggml_backend_dev_t dev) const {
    uint64_t bytes = 0;
    for (const auto& record : records) {
        bytes += record->params_device == ggml_backend_dev_name(dev) ? record->memory().bytes : 0;
    }
    return bytes;
}

void Placements::say_pageable(const std::string& module, const std::string& reason) {
    // The caller, who knows what was planned, warns; the engine's log says it once.
    if (!said.exchange(true)) {
        LOG_INFO("weights of module %s lie in pageable memory: %s; copies of them to the device are slower",
                 module.c_str(), reason.c_str());
    }
}

uint64_t file_bytes(const char* path, const std::string& prefix) {
    ModelLoader loader;
    uint64_t bytes = 0;
    if (loader.init_from_file_and_convert_name(path, prefix)) {
        for (const auto& [name, storage] : loader.get_tensor_storage_map()) {
            bytes += name.compare(0, prefix.size(), prefix) == 0 ? static_cast<uint64_t>(storage.nbytes()) : 0;
        }
    }
    return bytes;
}

}  // namespace sdcpp
