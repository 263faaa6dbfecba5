// The inside of a context's placements, for native/'s own files.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sdcpp/placement/books.h"
#include "ggml-backend.h"
#include "sdcpp/placement/placement.h"
#include "sdcpp/api/sdcpp.h"
#include "sdcpp/streaming/memory_budget.h"
#include "sdcpp/streaming/streamer.h"

namespace sdcpp {

// A device with the one backend instance that all modules and contexts share while any of them uses it. It needs no
// lock: the engine's callbacks belong to the process, so that its calls run one at a time.
struct Device {
    Device(ggml_backend_dev_t dev, ggml_backend_t backend) : dev(dev), backend(backend) {}
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    // Returns a second instance, whose stream is for copies; NULL when the device gives none.
    ggml_backend_t copy_backend();

    const ggml_backend_dev_t dev;
    const ggml_backend_t backend;
    uint64_t pool_bytes = 0;  // what the backend's pool grew to: it never gives memory back

private:
    ggml_backend_t copies = nullptr;
};

// The modules that can be placed.
extern const std::vector<std::string> module_names;

// Returns what a file's tensors whose names begin with a prefix, once converted, take.
uint64_t file_bytes(const char* path, const std::string& prefix);

// Forgets what the tensors of a failed allocation point to: memory that was freed again.
void forget_buffers(ggml_context* ctx);

// Where one module is wanted.
struct Spec {
    ggml_backend_dev_t runtime = nullptr;
    ggml_backend_dev_t params = nullptr;
    bool pin = false;
    bool stream = false;
    bool overlap = false;
    bool named = false;  // the runtime device was asked for: no other one will do
};

class Placements {
public:
    // Places every module as the engine's flags say.
    explicit Placements(const sd_ctx_params_t* params);
    // Replaces the placements of some modules; throws std::runtime_error for an unknown module or device.
    void apply(const sdcpp_placement_t* placements, int count);
    // Places every module on the CPU and makes its runners only say how large their weights are.
    void survey_begin();

    // Opens a device; throws std::runtime_error when that fails.
    std::shared_ptr<Device> open(ggml_backend_dev_t dev);
    // Opens a module's runtime device; the CPU replaces a default device that cannot be opened.
    std::shared_ptr<Device> open_runtime(const std::string& module);
    const Spec& spec(const std::string& module) const;
    std::shared_ptr<Book> book(const std::string& module, const Device& runtime, const Device& params);
    // Returns the books of modules that have or had weights; those of LoRAs without weights only on demand.
    std::vector<std::shared_ptr<Book>> open_books(bool with_empty_loras) const;
    // Returns what the weights that live on a device occupy.
    uint64_t weights_on(ggml_backend_dev_t dev) const;
    // Logs the first of a context's weights that are not pinned as wanted.
    void say_pageable(const std::string& module, const std::string& reason);

    MemoryBudget memory_budget;
    bool survey = false;
    std::map<std::string, uint64_t> surveyed;  // module -> bytes

private:
    std::map<std::string, Spec> specs;
    ggml_backend_dev_t default_dev = nullptr;
    std::vector<std::shared_ptr<Device>> devices;
    std::vector<std::shared_ptr<Book>> books;
    std::atomic<bool> said{false};
};

// What one runner was given.
struct Placement {
    std::shared_ptr<Placements> placements;  // NULL without a scope
    std::shared_ptr<Device> runtime;
    std::shared_ptr<Device> params;
    ggml_backend_t runtime_backend = nullptr;
    ggml_backend_t params_backend = nullptr;
    bool pin = false;
    bool overlap = false;  // of copies and computations, when the weights are streamed
    std::string module;
    std::shared_ptr<Book> book;
    Shelf shelf;
    std::unique_ptr<Streamer> streamer;  // NULL when nothing is streamed
    std::unique_ptr<char[]> graph_memory;
    size_t graph_memory_bytes = 0;
    std::map<uint64_t, ComputeUse> compute_uses;  // by the shape of a graph
    uint64_t compute_bytes = 0;  // its compute buffer, when it is not streamed but others are
};

}  // namespace sdcpp
