#include "sdcpp/upscaling/upscaler.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#include "esrgan.hpp"
#include "sdcpp/seams/seams.h"
#include "sdcpp/upscaling/tiles.h"
#include "util.h"

namespace sdcpp {

namespace {

// What two neighbours see of each other, on each side of the line between them. Real-ESRGAN's own script takes 10.
constexpr int widest_margin = 16;

using Clock = std::chrono::steady_clock;

// A picture as the network sees it: beyond its sides, up to the next multiple of the pixels that are folded, it is
// mirrored.
class Source {
public:
    Source(const sd_image_t& image, int folds)
        : image(image), width(padded(image.width, folds)), height(padded(image.height, folds)) {}

    sd::Tensor<float> cut(const Tile& across, const Tile& down) const {
        sd::Tensor<float> out({across.size, down.size, 3, 1});
        float* to = out.data();
        for (int channel = 0; channel < 3; ++channel) {
            for (int y = down.start; y < down.start + down.size; ++y) {
                const uint8_t* row = image.data + size_t{3} * image.width * mirrored(y, image.height);
                for (int x = across.start; x < across.start + across.size; ++x) {
                    *to++ = row[size_t{3} * mirrored(x, image.width) + channel] / 255.0f;
                }
            }
        }
        return out;
    }

private:
    static int padded(uint32_t side, int folds) { return (static_cast<int>(side) + folds - 1) / folds * folds; }
    static size_t mirrored(int at, uint32_t side) {
        const int last = static_cast<int>(side) - 1;
        return static_cast<size_t>(std::max(0, at <= last ? at : 2 * last - at));
    }

    const sd_image_t& image;

public:
    const int width;
    const int height;
};

// Copies what is kept of a tile's result, as far as the picture reaches.
void paste(const sd::Tensor<float>& from, const Tile& across, const Tile& down, int factor, sd_image_t& to) {
    const int wide = across.size * factor;
    const int high = down.size * factor;
    const int right = std::min(across.end * factor, static_cast<int>(to.width));
    const int bottom = std::min(down.end * factor, static_cast<int>(to.height));
    for (int channel = 0; channel < 3; ++channel) {
        const float* plane = from.data() + static_cast<size_t>(channel) * wide * high;
        for (int y = down.kept * factor; y < bottom; ++y) {
            const float* row = plane + static_cast<size_t>(y - down.start * factor) * wide;
            uint8_t* out = to.data + size_t{3} * to.width * static_cast<size_t>(y) + channel;
            for (int x = across.kept * factor; x < right; ++x) {
                const float value = row[x - across.start * factor];
                out[size_t{3} * x] = static_cast<uint8_t>(std::lround(std::min(1.0f, std::max(0.0f, value)) * 255.0f));
            }
        }
    }
}

std::shared_ptr<ESRGAN> network_of(const sdcpp_upscaler_params_t& params) {
    auto network = std::make_shared<ESRGAN>(module_backend("upscaler"), false);
    network->set_conv2d_direct_enabled(params.conv_direct);
    const int threads = params.n_threads > 0 ? params.n_threads : sd_get_num_physical_cores();
    return network->load_from_file(params.model_path, threads) ? network : nullptr;
}

}  // namespace

Upscaler::Upscaler(std::shared_ptr<Placements> placements, std::shared_ptr<ESRGAN> network, int threads)
    : placements(std::move(placements)), network(std::move(network)), threads(threads) {}

std::shared_ptr<Placements> Upscaler::place(const sdcpp_upscaler_params_t& params) {
    sd_ctx_params_t flags;
    sd_ctx_params_init(&flags);
    flags.max_vram = params.max_vram;
    flags.kernels = params.kernels;
    return std::make_shared<Placements>(&flags);
}

std::shared_ptr<Upscaler> Upscaler::load(const sdcpp_upscaler_params_t& params,
                                         std::shared_ptr<Placements> placements) {
    PlacementScope scope(placements);
    auto network = network_of(params);
    const int threads = params.n_threads > 0 ? params.n_threads : sd_get_num_physical_cores();
    return network ? std::shared_ptr<Upscaler>(new Upscaler(std::move(placements), std::move(network), threads))
                   : nullptr;
}

uint64_t Upscaler::survey(const sdcpp_upscaler_params_t& params) {
    const auto placements = place(params);
    placements->survey_begin();
    PlacementScope scope(placements);
    network_of(params);
    return placements->surveyed["upscaler"].bytes;
}

int Upscaler::factor() const {
    return network->scale;
}

sd_image_t Upscaler::upscale(const sd_image_t& image, int tile_size) {
    PlacementScope scope(placements);
    phase_begin("upscaling");
    placements->memory_budget.begin_generation();
    const int factor = network->scale;
    const int folds = network->folds;
    const Source source(image, folds);
    // Both are multiples of the pixels that are folded.
    const int tile = tile_size / folds * folds;
    const int margin = std::min(widest_margin, tile / 4 / folds * folds);
    const auto columns = tiles_along(source.width, tile, margin);
    const auto rows = tiles_along(source.height, tile, margin);
    const uint32_t wide = image.width * static_cast<uint32_t>(factor);
    const uint32_t high = image.height * static_cast<uint32_t>(factor);
    sd_image_t out = {wide, high, 3, static_cast<uint8_t*>(std::malloc(size_t{3} * wide * high))};
    if (out.data == nullptr) {
        throw std::bad_alloc();
    }
    const OnExit free_buffer([&] { network->free_compute_buffer(); });
    OnExit free_pixels([&] { std::free(out.data); });
    const int all = static_cast<int>(rows.size() * columns.size());
    int done = 0;
    auto start = Clock::now();
    pretty_progress(0, all, 0.0f);
    for (const Tile& down : rows) {
        for (const Tile& across : columns) {
            const auto larger = network->compute(threads, source.cut(across, down));
            if (larger.empty()) {
                return {0, 0, 0, nullptr};
            }
            paste(larger, across, down, factor, out);
            const auto now = Clock::now();
            pretty_progress(++done, all, std::chrono::duration<float>(now - std::exchange(start, now)).count());
            stop_if_cancelled();
        }
    }
    free_pixels.dismiss();
    return out;
}

}  // namespace sdcpp
