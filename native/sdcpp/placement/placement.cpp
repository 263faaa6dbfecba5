// Resolves placements, shares devices between modules and contexts, and allocates weights where they are wanted.
#include "sdcpp/placement/placement.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "sdcpp/placement/books.h"
#include "ggml-alloc.h"
#include "ggml_extend_backend.hpp"
#include "model.h"
#include "sdcpp/placement/placement_impl.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/streaming.h"
#include "util.h"

namespace {

using namespace sdcpp;

const std::string lora_suffix = ".lora";

thread_local std::shared_ptr<Placements> current;

bool is_cpu(ggml_backend_dev_t device) {
    return ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

std::string join(const std::vector<std::string>& names) {
    std::string text;
    for (const auto& name : names) {
        text += (text.empty() ? "" : ", ") + name;
    }
    return text;
}

std::string weights_size(ggml_context* ctx, ggml_backend_buffer_type_t type) {
    std::ostringstream text;
    text.precision(1);
    text << std::fixed;
    text << static_cast<double>(ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, type)) / (1024.0 * 1024.0);
    return text.str() + " MiB";
}

ggml_backend_dev_t cpu_device() {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device == nullptr) {
        throw std::runtime_error("there is no CPU device: the CPU backend module is missing");
    }
    return device;
}

// The engine's own choice: SD_VK_DEVICE, then the first GPU, then the CPU.
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
    std::vector<std::string> names;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        names.push_back(ggml_backend_dev_name(ggml_backend_dev_get(i)));
    }
    throw std::runtime_error("module " + std::string(module) + ": there is no device " + name + ", only " +
                             join(names));
}

}  // namespace

namespace sdcpp {

const std::vector<std::string> module_names = {"diffusion",  "te",         "clip_vision", "vae",
                                               "controlnet", "photomaker", "upscaler"};

// --- devices ---------------------------------------------------------------------------------------------------------

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

// --- placements ------------------------------------------------------------------------------------------------------

Placements::Placements(const sd_ctx_params_t* params) : memory_budget(*this, params->max_vram) {
    const ggml_backend_dev_t cpu = cpu_device();
    default_dev = default_device();
    for (const auto& name : module_names) {
        const bool keep = (name == "te" && params->keep_clip_on_cpu) || (name == "vae" && params->keep_vae_on_cpu) ||
                          (name == "controlnet" && params->keep_control_net_on_cpu);
        Spec& spec = specs[name];
        spec.runtime = keep ? cpu : default_dev;
        spec.params = params->offload_params_to_cpu ? cpu : spec.runtime;
    }
}

void Placements::apply(const sdcpp_placement_t* placements, int count) {
    std::map<std::string, int> seen;
    for (int i = 0; i < count; ++i) {
        const sdcpp_placement_t& wanted = placements[i];
        const std::string name = wanted.module != nullptr ? wanted.module : "";
        const auto found = specs.find(name);
        if (found == specs.end()) {
            throw std::runtime_error("there is no module " + name + ", only " + join(module_names));
        }
        if (++seen[name] > 1) {
            throw std::runtime_error("module " + name + " is placed twice");
        }
        Spec& spec = found->second;
        spec.named = wanted.runtime_device != nullptr;
        spec.runtime = spec.named ? named_device(wanted.runtime_device, wanted.module) : default_dev;
        spec.params = wanted.params_device != nullptr ? named_device(wanted.params_device, wanted.module)
                                                      : spec.runtime;
        spec.pin = wanted.pin;
        spec.stream = wanted.stream;
        spec.overlap = wanted.overlap;
    }
}

void Placements::survey_begin() {
    for (auto& [name, spec] : specs) {
        spec = Spec{};
        spec.runtime = spec.params = cpu_device();
    }
    survey = true;
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
    Spec& wanted = specs.at(module);
    if (!wanted.named && !is_cpu(wanted.runtime) && !device_open(wanted.runtime)) {
        LOG_WARN("device %s cannot be opened; module %s runs on the CPU", ggml_backend_dev_name(wanted.runtime),
                 module.c_str());
        wanted.runtime = wanted.params = cpu_device();
    }
    return open(wanted.runtime);
}

const Spec& Placements::spec(const std::string& module) const {
    return specs.at(module);
}

std::shared_ptr<Book> Placements::book(const std::string& module, const Device& runtime, const Device& params) {
    for (const auto& book : books) {
        if (book->module == module) {
            return book;
        }
    }
    books.push_back(std::make_shared<Book>(module, ggml_backend_dev_name(runtime.dev),
                                           ggml_backend_dev_name(params.dev)));
    return books.back();
}

std::vector<std::shared_ptr<Book>> Placements::open_books(bool with_empty_loras) const {
    std::vector<std::shared_ptr<Book>> found;
    for (const auto& book : books) {
        const bool lora = book->module.find(lora_suffix) != std::string::npos;
        if (book->used() && (!lora || with_empty_loras || book->memory().bytes > 0)) {
            found.push_back(book);
        }
    }
    return found;
}

uint64_t Placements::weights_on(ggml_backend_dev_t dev) const {
    uint64_t bytes = 0;
    for (const auto& book : books) {
        bytes += book->params_device == ggml_backend_dev_name(dev) ? book->memory().bytes : 0;
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

PlacementScope::PlacementScope(std::shared_ptr<Placements> placements)
    : outer(std::exchange(current, std::move(placements))) {}

PlacementScope::~PlacementScope() {
    current = std::move(outer);
}

std::shared_ptr<Placements> placements_open(const sd_ctx_params_t* params) {
    return current ? current : std::make_shared<Placements>(params);
}

ggml_backend_t module_backend(const char* module) {
    return current ? current->open_runtime(module)->backend : sd_get_default_backend();
}

// --- runners ---------------------------------------------------------------------------------------------------------

std::shared_ptr<Placement> placement_of(const char* module, ggml_backend_t backend, bool offload_params_to_cpu) {
    auto placement = std::make_shared<Placement>();
    placement->module = module;
    if (!current) {
        placement->runtime_backend = placement->params_backend = backend;
        if (offload_params_to_cpu && !ggml_backend_is_cpu(backend)) {
            placement->params = device_open(cpu_device());
            placement->params_backend = placement->params->backend;
        }
        return placement;
    }
    const size_t lora = placement->module.rfind(lora_suffix);
    const std::string owner = placement->module.substr(0, lora);
    placement->placements = current;
    placement->runtime = current->open_runtime(owner);
    const Spec& spec = current->spec(owner);
    // A LoRA's weights are read by its module's graphs, or only once: they live where these run.
    placement->params = lora == std::string::npos ? current->open(spec.params) : placement->runtime;
    placement->runtime_backend = placement->runtime->backend;
    placement->params_backend = placement->params->backend;
    placement->pin = lora == std::string::npos && spec.pin;
    placement->overlap = spec.overlap;
    placement->book = current->book(placement->module, *placement->runtime, *placement->params);
    if (spec.stream && lora == std::string::npos && placement->runtime != placement->params &&
        !is_cpu(placement->runtime->dev) && is_cpu(placement->params->dev)) {
        placement->streamer = std::make_unique<Streamer>(*placement);
    }
    return placement;
}

ggml_backend_t runtime_backend(const Placement& placement) {
    return placement.runtime_backend;
}

ggml_backend_t params_backend(const Placement& placement) {
    return placement.params_backend;
}

ggml_backend_buffer_t params_alloc(Placement& placement, ggml_context* ctx) {
    if (!placement.book) {
        return ggml_backend_alloc_ctx_tensors(ctx, placement.params_backend);
    }
    if (ggml_get_first_tensor(ctx) == nullptr) {
        return nullptr;
    }
    ggml_backend_buffer_type_t plain = ggml_backend_get_default_buffer_type(placement.params_backend);
    ggml_backend_buffer_type_t host = nullptr;
    std::string reason;
    if (placement.pin) {
        ggml_backend_dev_t runtime = placement.runtime->dev;
        if (placement.runtime == placement.params) {
            reason = "the weights live where they are used: there is nothing to pin";
        } else if (is_cpu(runtime) || !is_cpu(placement.params->dev)) {
            reason = "only weights in host memory that another device uses can be pinned";
        } else if ((host = ggml_backend_dev_host_buffer_type(runtime)) == nullptr) {
            reason = std::string(ggml_backend_dev_name(runtime)) + " has no host buffer type";
        }
    }
    placement.book->wanted(ggml_backend_buft_name(host != nullptr ? host : plain));
    if (host == nullptr) {
        placement.placements->memory_budget.make_room(placement.params->dev,
                                                      ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, plain));
    }

    ggml_backend_buffer_t buffer = nullptr;
    std::string warning;
    if (host != nullptr) {
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, host);
        if (buffer == nullptr) {
            forget_buffers(ctx);
            warning = std::string(ggml_backend_buft_name(host)) + " refused " + weights_size(ctx, host);
        }
    }
    if (buffer == nullptr) {
        buffer = tensors_alloc(placement, ctx, plain);
    }
    if (buffer == nullptr) {
        const bool lora = placement.module.find(lora_suffix) != std::string::npos;
        throw NoRoom("the weights of module " + placement.module + " (" + weights_size(ctx, plain) +
                     ") do not fit into the memory of " + ggml_backend_buft_name(plain) + ": free some of it, or " +
                     (lora                            ? "use fewer LoRAs"
                      : is_cpu(placement.params->dev) ? "take a smaller weight_type"
                                                      : "keep them in host memory (params_backend='cpu')"));
    }
    const std::string other = placement.shelf.put(placement.book, ctx, host);
    if (warning.empty() && !other.empty()) {
        warning = std::string(ggml_backend_buft_name(host)) + " silently gave memory of type " + other;
    }
    if (!warning.empty()) {
        placement.placements->say_pageable(placement.module, warning);
        reason = warning;
    }
    if (!reason.empty()) {
        placement.book->missed(reason);
    }
    return buffer;
}

void params_free(Placement& placement, ggml_backend_buffer_t buffer) {
    stream_release(placement);
    placement.shelf.take_out();
    ggml_backend_buffer_free(buffer);
}

void forget_buffers(ggml_context* ctx) {
    for (auto* tensor = ggml_get_first_tensor(ctx); tensor != nullptr; tensor = ggml_get_next_tensor(ctx, tensor)) {
        tensor->buffer = nullptr;
        tensor->data = nullptr;
        tensor->extra = nullptr;
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

void* graph_memory(Placement& placement, size_t bytes) {
    if (placement.graph_memory_bytes < bytes) {
        placement.graph_memory.reset(new char[bytes]);  // not touched yet
        placement.graph_memory_bytes = bytes;
    }
    return placement.graph_memory.get();
}

bool surveying() {
    return current && current->survey;
}

bool survey_add(const Placement& placement, ggml_context* ctx) {
    if (!placement.placements || !placement.placements->survey) {
        return false;
    }
    ggml_backend_buffer_type_t type = ggml_backend_get_default_buffer_type(placement.params_backend);
    placement.placements->surveyed[placement.module] += ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, type);
    return true;
}

}  // namespace sdcpp

// --- C API -----------------------------------------------------------------------------------------------------------

namespace {

std::vector<std::shared_ptr<Book>> books_of(const sd_ctx_t* ctx, bool with_empty_loras) {
    return ctx != nullptr ? placements_of(ctx)->open_books(with_empty_loras) : std::vector<std::shared_ptr<Book>>{};
}

}  // namespace

int sdcpp_memory_count(const sd_ctx_t* ctx) {
    return static_cast<int>(books_of(ctx, false).size());
}

bool sdcpp_memory_get(const sd_ctx_t* ctx, int index, sdcpp_memory_t* memory) {
    const auto books = books_of(ctx, false);
    if (memory == nullptr || index < 0 || index >= static_cast<int>(books.size())) {
        return false;
    }
    const Book& book = *books[static_cast<size_t>(index)];
    // Kept here for the caller, who copies them before the next call.
    static thread_local Memory state;
    static thread_local std::string types;
    state = book.memory();
    types.clear();
    for (const auto& [type, bytes] : state.per_type) {
        types += (types.empty() ? "" : "+") + type;
    }
    *memory = {book.module.c_str(),
               book.runtime_device.c_str(),
               book.params_device.c_str(),
               state.wanted.c_str(),
               types.c_str(),
               state.reason.c_str(),
               state.bytes > 0 && state.pinned_bytes == state.bytes,
               state.bytes,
               state.pinned_bytes,
               state.tensors};
    return true;
}

int sdcpp_transfer_count(const sd_ctx_t* ctx) {
    return static_cast<int>(books_of(ctx, true).size());
}

bool sdcpp_transfer_get(const sd_ctx_t* ctx, int index, sdcpp_transfer_t* transfer) {
    const auto books = books_of(ctx, true);
    if (transfer == nullptr || index < 0 || index >= static_cast<int>(books.size())) {
        return false;
    }
    const Book& book = *books[static_cast<size_t>(index)];
    const Transfers moved = book.transfers();
    *transfer = {book.module.c_str(), moved.to_device_pinned, moved.to_device_pageable,
                 moved.from_device,   moved.seconds,          moved.copies};
    return true;
}

int sdcpp_stream_count(const sd_ctx_t* ctx) {
    return ctx != nullptr ? static_cast<int>(placements_of(ctx)->memory_budget.streamers().size()) : 0;
}

bool sdcpp_stream_get(const sd_ctx_t* ctx, int index, sdcpp_stream_t* stream) {
    if (stream == nullptr || index < 0 || index >= sdcpp_stream_count(ctx)) {
        return false;
    }
    return placements_of(ctx)->memory_budget.streamers()[static_cast<size_t>(index)]->describe(stream);
}
