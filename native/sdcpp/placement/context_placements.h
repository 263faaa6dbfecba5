// Where the modules of one context are wanted, with the devices that they share and the records of their weights.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "sdcpp/api/sdcpp.h"
#include "sdcpp/architecture/own_files.h"
#include "sdcpp/disk/read_ahead.h"
#include "sdcpp/placement/device.h"
#include "sdcpp/placement/locked_memory.h"
#include "sdcpp/placement/modules.h"
#include "sdcpp/placement/picture_survey.h"
#include "sdcpp/placement/weights_record.h"
#include "sdcpp/streaming/memory_budget.h"

namespace sdcpp {

struct Placement;

// Returns what a file's tensors whose names begin with a prefix, once converted, take.
uint64_t file_bytes(const char* path, const std::string& prefix);

// Where one module is wanted.
struct ModulePlacement {
    ggml_backend_dev_t runtime = nullptr;
    ggml_backend_dev_t params = nullptr;
    bool disk = false;  // they stay in the model's files, but for so many bytes
    uint64_t keep_bytes = 0;
    bool past_cache = false;  // for the others the system's cache has no room
    bool pin = false;
    bool stream = false;
    bool overlap = false;
    bool placed = false;  // asked for, by name or as the default
    bool named = false;  // the runtime device was asked for: no other one will do
};

class Placements {
public:
    // Places every module as the engine's flags say.
    explicit Placements(const sd_ctx_params_t* params);
    // Replaces the placements of some modules; throws std::runtime_error for an unknown module or device.
    void apply(const sdcpp_placement_t* placements, int count);
    // Returns the devices that compute: those of the runners there are, before that those of the modules placed by
    // apply(), or without any the default device and the CPU, which replaces it.
    std::vector<ggml_backend_dev_t> runtime_devices() const;
    // Waits for the opened devices.
    void synchronize() const;
    // Places every module on a device, the CPU where that is NULL, and makes its runners only say how large their
    // weights are and, with `pictures`, what their graphs take.
    void survey_begin(ggml_backend_dev_t dev = nullptr, bool pictures = false);
    // Makes runners wait with their weights; returns the engine's parameters without its own flags for placing modules.
    const sd_ctx_params_t* load_begin(const sd_ctx_params_t* params);
    // Allocates the weights of the runners that wait, and lets no more wait.
    void load_waiting();
    // Waits until the weights in host memory that are being locked are.
    void settle();
    // Forgets the runners that wait, and lets no more wait.
    void load_end();

    // Opens a device; throws std::runtime_error when that fails.
    std::shared_ptr<Device> open(ggml_backend_dev_t dev);
    // Opens a module's runtime device; the CPU replaces a default device that cannot be opened.
    std::shared_ptr<Device> open_runtime(const std::string& module);
    const ModulePlacement& wanted(const std::string& module) const;
    // What of a module's weights on disk host memory may still keep, in bytes.
    uint64_t& keep_bytes(const std::string& module) { return modules.at(module).keep_bytes; }
    // Tells whether a module's weights on disk are read past the system's cache.
    bool past_cache(const std::string& module) const { return modules.at(module).past_cache; }
    // Returns the record of a module's or its LoRAs' weights, a new one the first time.
    std::shared_ptr<WeightsRecord> record(const std::string& name, const Device& runtime, const std::string& params);
    // Returns what reads weights on disk ahead for a device.
    std::shared_ptr<ReadAhead>& read_ahead(ggml_backend_dev_t dev);
    // Returns the records of modules that have or had weights; those of LoRAs without weights only on demand.
    std::vector<std::shared_ptr<WeightsRecord>> used_records(bool with_empty_loras) const;
    // Returns what the weights that live on a device occupy.
    uint64_t weights_on(ggml_backend_dev_t dev) const;
    // Logs the first of a context's weights that are not pinned as wanted.
    void say_pageable(const std::string& module, const std::string& reason);

    const std::vector<OwnFile> parts;  // that come in files of their own
    const std::string type_rules;
    const bool fast_kernels;  // the kernel policy
    sdcpp_traits_t traits = {};  // once the networks are built
    MemoryBudget memory_budget;
    int clip_layers = 0;  // the least number that a CLIP text encoder has; 0 without one
    bool survey = false;
    std::map<std::string, sdcpp_weights_t> surveyed;        // by module, without its name
    std::map<ggml_context*, std::string> surveyed_weights;  // -> module
    bool survey_pictures = false;
    NetworkDemands demands;
    bool loading = false;
    MemoryLocker locker;
    std::vector<Placement*> unsettled;  // runners whose weights are being locked
    std::vector<std::function<void()>> waiting;  // runners that allocate their weights once the checkpoint is compared

private:
    std::map<std::string, ModulePlacement> modules;
    ggml_backend_dev_t default_dev = nullptr;
    std::vector<std::shared_ptr<Device>> devices;
    std::vector<std::shared_ptr<WeightsRecord>> records;
    std::map<ggml_backend_dev_t, std::shared_ptr<ReadAhead>> reads_ahead;
    sd_ctx_params_t without_flags = {};
    std::atomic<bool> said{false};
};

// Returns the placements of the context that this thread makes; NULL without one.
Placements* placements_current();
// The same, to be kept.
std::shared_ptr<Placements> placements_shared();

}  // namespace sdcpp
