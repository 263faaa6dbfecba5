// Computes a diffusion model of full size without weights: its graphs and tensors have the shapes that a checkpoint's
// header gives, on a device that keeps books but computes nothing. Part of the engine library in test builds only.
#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "diffusion_model.hpp"
#include "sdcpp/api/run.h"
#include "sdcpp/lanes/lanes.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/seams/seams.h"
#include "sdcpp/streaming/common.h"
#include "sdcpp/streaming/streamer.h"
#include "sdcpp/streaming/test_hooks.h"

namespace {

struct Probe {
    std::shared_ptr<sdcpp::Placements> placements;
    std::shared_ptr<DiffusionModel> model;
    SDVersion version = VERSION_COUNT;
};

// A disk whose time passes on the virtual clock.
struct {
    double rate;                          // bytes of weights a second
    void (*wait_until)(double seconds);   // lets the host wait
    double (*stream_end)(void* backend);  // when what a stream was given will be done
} disk;

// Reads nothing, one piece after another, as fast as that disk would: a piece begins once it is expected and its block of
// the ring is free.
class VirtualReads : public sdcpp::ReadAhead {
public:
    explicit VirtualReads(ggml_backend_dev_t dev) : ReadAhead(dev, 0) {
        ggml_backend_buffer_type_t const host = ggml_backend_dev_host_buffer_type(dev);
        block_.reset(ggml_backend_buft_alloc_buffer(host, block_bytes));
    }
    bool lost(const void* owner) override {
        if (owner == owner_) {
            return false;
        }
        forget();
        owner_ = owner;
        return true;
    }
    void expect(const Piece& piece) override { expected_.push_back({piece, sdcpp::now()}); }
    size_t expected() const override {
        size_t bytes = 0;
        for (const Expected& each : expected_) {
            bytes += each.piece.bytes;
        }
        return bytes;
    }
    void forget() override {
        owner_ = nullptr;
        expected_.clear();
    }
    const char* take(const Piece& piece) override {
        if (expected_.empty() || !(expected_.front().piece == piece)) {
            forget();
            expect(piece);
        }
        const double begin = std::max({done_, expected_.front().since, free_[++taken_ % free_.size()]});
        expected_.pop_front();
        done_ = begin + static_cast<double>(piece.bytes) / disk.rate;
        disk.wait_until(done_);
        return static_cast<const char*>(ggml_backend_buffer_get_base(block_.get()));
    }
    void read_to(const Piece& piece, char*) override {
        take(piece);
        sent(nullptr);
    }
    void sent(ggml_backend_t stream) override {
        free_[taken_ % free_.size()] = stream != nullptr ? disk.stream_end(stream) : sdcpp::now();
    }

private:
    struct Expected {
        Piece piece;
        double since;
    };
    ggml_backend_buffer_ptr block_;
    const void* owner_ = nullptr;
    std::deque<Expected> expected_;
    std::array<double, ring_bytes / block_bytes> free_ = {};
    size_t taken_ = 0;
    double done_ = 0.0;
};

std::string last_error;

// Runs a function as a call of the engine that nobody listens to.
template <typename F>
bool run(F&& function) {
    sdcpp::Run one;
    const bool done = sdcpp::run_guarded(one, function) == SDCPP_OK;
    last_error = one.error;
    return done;
}

sd::Tensor<float> tensor(std::vector<int64_t> shape) {
    sd::Tensor<float> made(std::move(shape));
    made.fill_(0.5f);
    return made;
}

std::shared_ptr<DiffusionModel> make(SDVersion version, ggml_backend_t backend, const String2TensorStorage& tensors) {
    const std::string prefix = "model.diffusion_model";
    if (sd_version_is_z_image(version)) {
        return std::make_shared<ZImageModel>(backend, false, tensors, prefix, version);
    }
    if (sd_version_is_qwen_image(version)) {
        return std::make_shared<QwenImageModel>(backend, false, tensors, prefix, version);
    }
    if (sd_version_is_flux(version)) {
        return std::make_shared<FluxModel>(backend, false, tensors, version);
    }
    if (sd_version_is_unet(version)) {
        return std::make_shared<UNetModel>(backend, false, tensors, version);
    }
    throw std::runtime_error("the probe knows no such model");
}

}  // namespace

extern "C" {

// Makes the diffusion model that a checkpoint's header describes; mode is "device" (weights live there), "engine" (in
// host memory, the engine's own segments), "in turn" or "overlapped" (streamed), or "disk" (streamed from there, but for
// so many bytes that host memory keeps). Returns NULL when that fails.
SD_API void* sdcpp_probe_new(const char* checkpoint, const char* device, const char* mode, bool pin, uint64_t keep) {
    auto probe = std::make_unique<Probe>();
    const bool made = run([&] {
        sdcpp::backends_load();
        const std::string wanted = mode;
        sd_ctx_params_t params;
        sd_ctx_params_init(&params);
        probe->placements = std::make_shared<sdcpp::Placements>(&params);
        const bool on_disk = wanted == "disk";
        const bool overlap = wanted == "overlapped" || on_disk;
        const char* const home = wanted == "device" ? device : on_disk ? "disk" : "CPU";
        const sdcpp_placement_t place = {
            "diffusion", device, home, pin, overlap || wanted == "in turn", overlap, keep};
        probe->placements->apply(&place, 1);
        if (on_disk) {
            ggml_backend_dev_t const dev = sdcpp::named_device(device, "diffusion");
            probe->placements->read_ahead(dev) = std::make_shared<VirtualReads>(dev);
        }
        sdcpp::PlacementScope scope(probe->placements);
        ModelLoader loader;
        if (!loader.init_from_file_and_convert_name(checkpoint)) {
            return false;
        }
        probe->version = loader.get_sd_version();
        probe->model = make(probe->version, sdcpp::module_backend("diffusion"), loader.get_tensor_storage_map());
        probe->model->set_flash_attention_enabled(true);
        probe->model->alloc_params_buffer();
        return true;
    });
    return made ? probe.release() : nullptr;
}

// Returns why the last call failed.
SD_API const char* sdcpp_probe_error(void) {
    return last_error.c_str();
}

// Lets streaming measure with a clock, in seconds, instead of the system's.
SD_API void sdcpp_probe_clock(double (*now)()) {
    sdcpp::stream_clock = now;
}

// Says how many bytes of weights a second "disk" reads, and how the virtual clock passes meanwhile.
SD_API void sdcpp_probe_disk(double rate, void (*wait_until)(double), double (*stream_end)(void*)) {
    disk = {rate, wait_until, stream_end};
}

// Sets the budget of device memory and starts a generation, with nothing on the device.
SD_API void sdcpp_probe_begin(void* handle, double max_vram) {
    auto* probe = static_cast<Probe*>(handle);
    run([&] {
        probe->model->free_compute_buffer();
        probe->placements->memory_budget.set_max_vram(static_cast<float>(max_vram));
        probe->placements->memory_budget.begin_generation();
        for (sdcpp::Streamer* streamer : probe->placements->memory_budget.streamers()) {
            streamer->release();
        }
        probe->model->set_max_graph_vram_bytes(static_cast<size_t>(max_vram * sdcpp::gib));
        return true;
    });
}

// Computes a step of so many passes, for a picture of a size, and a prompt of a number of tokens where the model takes
// any.
SD_API bool sdcpp_probe_step(void* handle, int width, int height, int tokens, int passes) {
    auto* probe = static_cast<Probe*>(handle);
    return run([&] {
        sdcpp::PlacementScope scope(probe->placements);
        const SDVersion version = probe->version;
        const bool unet = sd_version_is_unet(version);
        const int channels = unet ? 4 : 16;
        const int width_of_context = sd_version_is_sdxl(version)         ? 2048
                                     : unet                              ? 768
                                     : sd_version_is_z_image(version)    ? 2560
                                     : sd_version_is_qwen_image(version) ? 3584
                                                                         : 4096;
        const auto x = tensor({width / 8, height / 8, channels, 1});
        const auto timesteps = tensor({1});
        const auto context = tensor({width_of_context, unet ? 77 : tokens, 1});
        const auto y = tensor({sd_version_is_sdxl(version) ? 2816 : 768, 1});
        const auto guidance = tensor({1});
        DiffusionParams params;
        params.x = &x;
        params.timesteps = &timesteps;
        params.context = &context;
        if (sd_version_is_sdxl(version) || sd_version_is_flux(version)) {
            params.y = &y;
            params.guidance = &guidance;
        }
        bool computed = true;
        const auto compute = [&] {
            const sdcpp::PassScope pass(sdcpp::inputs_of(params));
            computed = !probe->model->compute(1, params).empty() && computed;
        };
        const std::vector<std::function<void()>> others(static_cast<size_t>(passes - 1), compute);
        sdcpp::Beside beside(true, others);
        compute();
        for (size_t i = 0; i < others.size(); ++i) {
            beside.run(i);
        }
        return computed;
    });
}

// Describes how the model was streamed.
SD_API bool sdcpp_probe_stream(void* handle, sdcpp_stream_t* stream) {
    auto* probe = static_cast<Probe*>(handle);
    const auto& streamers = probe->placements->memory_budget.streamers();
    return !streamers.empty() && streamers.front()->describe(stream);
}

// Tells the size and the estimated cost of a segment of the model, and what the compute buffer holds at least and at
// most while it is computed; false when there are no more.
SD_API bool sdcpp_probe_segment(void* handle, int index, uint64_t* bytes, double* cost, uint64_t* least,
                                uint64_t* most) {
    auto* probe = static_cast<Probe*>(handle);
    const sdcpp::Streamer& streamer = *probe->placements->memory_budget.streamers().front();
    const sdcpp::Scan& scan = streamer.scan();
    if (index < 0 || index >= static_cast<int>(scan.segments.size())) {
        return false;
    }
    const auto at = static_cast<size_t>(index);
    *bytes = scan.segments[at].bytes;
    *cost = scan.segments[at].cost;
    std::tie(*least, *most) = scan.values(at);
    return true;
}

SD_API void sdcpp_probe_free(void* handle) {
    auto* probe = static_cast<Probe*>(handle);
    run([&] {
        sdcpp::PlacementScope scope(probe->placements);
        probe->model.reset();
        return true;
    });
    delete probe;
}

}  // extern "C"
