// What the patches ask of the placements of this thread, and allocating weights where they are wanted.
#include "sdcpp/kernels/policy.h"
#include "sdcpp/placement/placement.h"

#include <algorithm>
#include <iterator>
#include <sstream>
#include <utility>

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml_extend_backend.hpp"
#include "sdcpp/autoencoder/autoencoder.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/streaming.h"
#include "util.h"

namespace {

using namespace sdcpp;

thread_local std::shared_ptr<Placements> current;
thread_local const char* lora_module = "diffusion";

std::string in_mib(size_t bytes) {
    std::ostringstream text;
    text.precision(1);
    text << std::fixed << static_cast<double>(bytes) / (1024.0 * 1024.0);
    return text.str() + " MiB";
}

std::string weights_size(ggml_context* ctx, ggml_backend_buffer_type_t type) {
    return in_mib(ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, type));
}

std::string refusal(ggml_backend_buffer_type_t host, const std::string& size) {
    return std::string(ggml_backend_buft_name(host)) + " refused " + size;
}

// Says that weights are not pinned as wanted.
void miss(const Placement& placement, const std::string& why) {
    placement.placements->say_pageable(placement.module, why);
    placement.record->missed(why);
}

// Lets a runner be settled, once.
void settle_later(Placement& placement, ggml_context* ctx) {
    if (std::exchange(placement.unsettled, ctx) == nullptr) {
        placement.placements->unsettled.push_back(&placement);
    }
}

bool needs_memory(ggml_context* ctx) {
    for (ggml_tensor* t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        if (t->data == nullptr && t->view_src == nullptr) {
            return true;
        }
    }
    return false;
}

void erase(std::vector<Placement*>& all, const Placement* one) {
    all.erase(std::remove(all.begin(), all.end(), one), all.end());
}

// Gives a runner what its module's placement says.
void place(Placement& placement, const std::string& network, const RunnerFields& runner) {
    const std::string own = module_of_network(network);
    const bool lora = own.empty();
    const std::string module = lora ? lora_module : own;
    placement.module = lora ? lora_of(module) : module;
    placement.runtime = current->open_runtime(module);
    const ModulePlacement& wanted = current->wanted(module);
    // A LoRA's weights are read by its module's graphs, or only once: they live where these run.
    placement.params = lora ? placement.runtime : current->open(wanted.params);
    placement.runtime_backend = placement.runtime->backend;
    placement.params_backend = placement.params->backend;
    placement.pin = !lora && wanted.pin;
    placement.overlap = wanted.overlap;
    placement.on_disk = !lora && wanted.disk;
    placement.record = current->record(placement.module, *placement.runtime,
                                       placement.on_disk ? "disk" : ggml_backend_dev_name(placement.params->dev));
    placement.placements = current;
    if (wanted.stream && !lora && placement.runtime != placement.params && !is_cpu(placement.runtime->dev) &&
        is_cpu(placement.params->dev)) {
        placement.streamer = std::make_unique<Streamer>(placement);
    }
    runner.runtime_backend = placement.runtime_backend;
    runner.params_backend = placement.params_backend;
    if (placement.runtime != placement.params && runner.offload == nullptr) {
        runner.offload = ggml_init({ggml_get_mem_size(runner.params), nullptr, true});
    }
}

}  // namespace

sdcpp::Placements* sdcpp::placements_current() {
    return current.get();
}

std::shared_ptr<sdcpp::Placements> sdcpp::placements_shared() {
    return current;
}

namespace sdcpp {

// --- contexts --------------------------------------------------------------------------------------------------------

PlacementScope::PlacementScope(std::shared_ptr<Placements> placements)
    : outer(std::exchange(current, std::move(placements))) {}

PlacementScope::~PlacementScope() {
    current = std::move(outer);
}

LoraScope::LoraScope(const char* module) : outer(std::exchange(lora_module, module)) {}

LoraScope::~LoraScope() {
    lora_module = outer;
}

std::shared_ptr<Placements> placements_open(const sd_ctx_params_t*& params) {
    auto placements = current ? current : std::make_shared<Placements>(params);
    params = placements->load_begin(params);
    return placements;
}

ggml_backend_t module_backend(const char* module) {
    return current ? current->open_runtime(module)->backend : sd_get_default_backend();
}

void clip_layers_note(int layers) {
    if (current) {
        current->clip_layers = current->clip_layers == 0 ? layers : std::min(current->clip_layers, layers);
    }
}

bool surveying() {
    return current && current->survey;
}

void params_alloc_waiting() {
    current->load_waiting();
}

// --- runners ---------------------------------------------------------------------------------------------------------

std::shared_ptr<Placement> placement_new() {
    return std::make_shared<Placement>();
}

bool placed(const Placement& placement) {
    return placement.placements != nullptr;
}

bool computes_fast(const Placement& placement) {
    return placed(placement) ? placement.placements->fast_kernels : sdcpp_kernels_fast();
}

bool place_runner(Placement& placement, const std::string& network, RunnerFields runner,
                  std::function<void()> allocate) {
    if (autoencoder_only() && module_of_network(network) != "vae") {
        return true;
    }
    if (!placed(placement)) {
        if (!current) {
            placement.runtime_backend = runner.runtime_backend;
            placement.params_backend = runner.params_backend;
            return false;
        }
        place(placement, network, runner);
    }
    Placements& placements = *placement.placements;
    if (placements.survey) {
        placements.surveyed[placement.module].bytes += ggml_backend_alloc_ctx_tensors_from_buft_size(
            runner.params, ggml_backend_get_default_buffer_type(placement.params_backend));
        placements.surveyed_weights[runner.params] = placement.module;
        return true;
    }
    // A LoRA's weights are read at once.
    if (placements.loading && !is_lora(placement.module)) {
        placements.waiting.push_back(std::move(allocate));
        return true;
    }
    return false;
}

// Counts a runner's weights; arguments and result as of AllocatedWeights::count.
static std::string count(Placement& placement, ggml_context* ctx, ggml_backend_buffer_type_t pinned) {
    return placement.weights.count(placement.record, ctx, pinned,
                                   placement.disk != nullptr ? placement.disk->memory() : nullptr);
}

// Allocates, of a runner's weights, what is not on disk.
static ggml_backend_buffer_t host_alloc(Placement& placement, ggml_context* ctx) {
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
    placement.record->wanted(ggml_backend_buft_name(host != nullptr ? host : plain));
    if (host == nullptr) {
        placement.placements->memory_budget.make_room(placement.params->dev,
                                                      ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, plain));
    }

    ggml_backend_buffer_t buffer = nullptr;
    std::string warning;
    if (host != nullptr) {
        placement.host = HostWeights::alloc(placement.placements->locker, placement.runtime->dev, plain, ctx);
        if (placement.host != nullptr) {
            count(placement, ctx, nullptr);
            settle_later(placement, ctx);
            return placement.host->buffer();
        }
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, host);
        if (buffer == nullptr) {
            forget_buffers(ctx);
            warning = refusal(host, weights_size(ctx, host));
        }
    }
    if (buffer == nullptr) {
        buffer = tensors_alloc(placement, ctx, plain);
    }
    if (buffer == nullptr) {
        throw NoRoom("the weights of module " + placement.module + " (" + weights_size(ctx, plain) +
                     ") do not fit into the memory of " + ggml_backend_buft_name(plain) + ": free some of it, or " +
                     (is_lora(placement.module)       ? "use fewer LoRAs"
                      : is_cpu(placement.params->dev) ? "take a smaller weight_type"
                                                      : "keep them in host memory (params_backend='cpu')"));
    }
    const std::string other = count(placement, ctx, host);
    if (warning.empty() && !other.empty()) {
        warning = std::string(ggml_backend_buft_name(host)) + " silently gave memory of type " + other;
    }
    if (!warning.empty()) {
        miss(placement, warning);
    } else if (!reason.empty()) {
        placement.record->missed(reason);
    }
    return buffer;
}

ggml_backend_buffer_t params_alloc(Placement& placement, ggml_context* ctx) {
    if (!placement.record) {
        return ggml_backend_alloc_ctx_tensors(ctx, placement.params_backend);
    }
    if (ggml_get_first_tensor(ctx) == nullptr) {
        return nullptr;
    }
    if (placement.on_disk) {
        placement.disk = DiskWeights::place(ctx, placement.placements->keep_bytes(placement.module),
                                            placement.placements->past_cache(placement.module), placement.record);
        if (placement.disk != nullptr) {
            placement.disk->take_memory(
                placement.pin ? ggml_backend_dev_host_buffer_type(placement.runtime->dev) : nullptr,
                ggml_backend_get_default_buffer_type(placement.params_backend));
        }
        settle_later(placement, ctx);
    }
    if (placement.disk == nullptr) {
        return host_alloc(placement, ctx);
    }
    if (!needs_memory(ctx)) {
        placement.record->wanted("disk");
        count(placement, ctx, placement.pin ? ggml_backend_dev_host_buffer_type(placement.runtime->dev) : nullptr);
        return placement.disk->buffer();
    }
    ggml_backend_buffer_t both[] = {host_alloc(placement, ctx), placement.disk->buffer()};
    return ggml_backend_multi_buffer_alloc_buffer(both, std::size(both));
}

void settle(Placement& placement) {
    ggml_context* const ctx = std::exchange(placement.unsettled, nullptr);
    if (ctx == nullptr) {
        return;
    }
    erase(placement.placements->unsettled, &placement);
    ggml_backend_buffer_type_t const host = ggml_backend_dev_host_buffer_type(placement.runtime->dev);
    if (placement.host == nullptr) {
        // Tensors that cannot be read in parts have other memory now.
        count(placement, ctx, host);
    } else if (placement.host->settle()) {
        count(placement, ctx, host);
    } else {
        miss(placement, refusal(host, in_mib(ggml_backend_buffer_get_size(placement.host->buffer()))));
    }
}

void params_free(Placement& placement, ggml_backend_buffer_t buffer) {
    stream_release(placement);
    placement.weights.forget();
    ggml_backend_buffer_free(buffer);
    if (std::exchange(placement.unsettled, nullptr) != nullptr) {
        erase(placement.placements->unsettled, &placement);
    }
    placement.host.reset();
    placement.disk.reset();
}

void* graph_memory(Placement& placement, size_t bytes) {
    // A graph that is kept has its memory.
    if (placement.graph_memory_bytes < bytes || placement.graph_memory.use_count() > 1) {
        placement.graph_memory.reset(new char[bytes]);  // not touched yet
        placement.graph_memory_bytes = bytes;
    }
    return placement.graph_memory.get();
}

}  // namespace sdcpp
