// A loaded upscaler: the engine's network, placed, and a picture's way through it, tile by tile.
#pragma once

#include <memory>

#include "sdcpp/api/sdcpp.h"
#include "sdcpp/placement/context_placements.h"

struct ESRGAN;

namespace sdcpp {

class Upscaler {
public:
    // Returns the placements for an upscaler, which the caller changes before it loads.
    static std::shared_ptr<Placements> place(const sdcpp_upscaler_params_t& params);
    // Loads an upscaler; NULL where the engine refused the file.
    static std::shared_ptr<Upscaler> load(const sdcpp_upscaler_params_t& params,
                                          std::shared_ptr<Placements> placements);
    // Returns what its weights will take.
    static uint64_t survey(const sdcpp_upscaler_params_t& params);

    // How many times longer it makes a side.
    int factor() const;
    // Makes an RGB picture larger, in tiles of this size; 0: all at once. The pixels, of malloc, are the caller's; NULL
    // when it failed.
    sd_image_t upscale(const sd_image_t& image, int tile_size);

    const std::shared_ptr<Placements> placements;

private:
    Upscaler(std::shared_ptr<Placements> placements, std::shared_ptr<ESRGAN> network, int threads);

    const std::shared_ptr<ESRGAN> network;
    const int threads;
};

}  // namespace sdcpp
