// The entry points that say what a model, its pictures and a device take before anything is loaded.
#include <map>
#include <memory>
#include <string>

#include "sdcpp/api/run.h"
#include "sdcpp/api/turns.h"
#include "sdcpp/autoencoder/autoencoder.h"
#include "sdcpp/placement/context_placements.h"
#include "sdcpp/placement/device.h"
#include "sdcpp/values/noise_levels.h"
#include "sdcpp/values/refused.h"

namespace {

using namespace sdcpp;

// Returns a model's parameters without what cannot be surveyed: loading PhotoMaker reads weights while the context is
// made, so its file is looked at by itself.
sd_ctx_params_t surveyed_params(const sd_ctx_params_t& params) {
    sd_ctx_params_t wanted = params;
    wanted.photo_maker_path = nullptr;
    return wanted;
}

// Returns what the weights of each module would take.
std::map<std::string, sdcpp_weights_t> survey(const sd_ctx_params_t& params) {
    backends_load();
    sd_ctx_params_t wanted = surveyed_params(params);
    auto placements = std::make_shared<Placements>(&wanted);
    placements->survey_begin();
    PlacementScope scope(placements);
    if (sd_ctx_t* made = new_sd_ctx(&wanted)) {
        free_sd_ctx(made);
    }
    return placements->surveyed;
}

}  // namespace

sdcpp_status_t sdcpp_weights_survey(sdcpp_run_t* run, const sd_ctx_params_t* params, sdcpp_weights_t* weights,
                                    int capacity, int* count) {
    *count = 0;
    const Turn turn(*run, Claim{});
    if (turn.status() != SDCPP_OK) {
        return turn.status();
    }
    const sdcpp_status_t status = run_guarded(*run, [&] {
        auto found = survey(*params);
        if (found.empty()) {
            return false;
        }
        if (params->photo_maker_path != nullptr && params->photo_maker_path[0] != '\0') {
            found["photomaker"].bytes += file_bytes(params->photo_maker_path, "pmid.");
        }
        for (const auto& name : module_names) {
            if (found.count(name) != 0 && *count < capacity) {
                weights[*count] = found[name];
                weights[(*count)++].module = name.c_str();
            }
        }
        return true;
    });
    return status == SDCPP_BROKEN ? SDCPP_FAILED : status;
}

sdcpp_status_t sdcpp_encoder_survey(sdcpp_run_t* run, const sd_ctx_params_t* params, uint64_t* bytes) {
    *bytes = 0;
    const Turn turn(*run, Claim{});
    if (turn.status() != SDCPP_OK) {
        return turn.status();
    }
    const sdcpp_status_t status = run_guarded(*run, [&] {
        const AutoencoderScope autoencoder;
        const sd_ctx_params_t with = autoencoder_params(*params);
        sd_ctx_params_t without = with;
        without.vae_decode_only = true;
        const uint64_t whole = survey(with)["vae"].bytes;
        const bool none = !run->error.empty();  // NoEncoder, or files that are gone
        *bytes = params->vae_decode_only && !none ? whole - survey(without)["vae"].bytes : 0;
        return true;
    });
    return status == SDCPP_BROKEN ? SDCPP_FAILED : status;
}

sdcpp_status_t sdcpp_device_bus_rate(sdcpp_run_t* run, const char* device, double* rate) {
    *rate = 0.0;
    ggml_backend_dev_t dev = nullptr;
    const sdcpp_status_t status = run_guarded(*run, [&] {
        backends_load();
        dev = named_device(device, "device");
        return true;
    });
    if (status != SDCPP_OK) {
        return status;
    }
    const Turn turn(*run, {{dev}, false});
    if (turn.status() != SDCPP_OK) {
        return turn.status();
    }
    return run_guarded(*run, [&] {
        const auto opened = device_open(dev);
        *rate = opened ? bus_rate(*opened) : 0.0;
        return true;
    });
}

sdcpp_status_t sdcpp_picture_survey(sdcpp_run_t* run, const sd_ctx_params_t* params, const char* device,
                                    const sd_img_gen_params_t* images, const sd_vid_gen_params_t* video,
                                    sdcpp_demand_t* demands, int capacity, int* count) {
    *count = 0;
    ggml_backend_dev_t dev = nullptr;
    sdcpp_status_t status = run_guarded(*run, [&] {
        backends_load();
        dev = device != nullptr ? named_device(device, "device") : cpu_device();
        return true;
    });
    if (status != SDCPP_OK) {
        return status;
    }
    const Turn turn(*run, is_cpu(dev) ? Claim{} : Claim{{dev}, false});
    if (turn.status() != SDCPP_OK) {
        return turn.status();
    }
    status = run_guarded(*run, [&] {
        const sd_ctx_params_t wanted = surveyed_params(*params);
        const auto placements = std::make_shared<Placements>(&wanted);
        placements->survey_begin(dev, true);
        const PlacementScope scope(placements);
        sd_ctx_t* const made = new_sd_ctx(&wanted);
        if (made == nullptr) {
            return false;
        }
        const OnExit unmake([&] { free_sd_ctx(made); });
        const sdcpp_abilities_t able = abilities_of(made);
        if (images != nullptr ? !able.draws_images : !able.draws_videos) {
            throw Refused(std::string("this model draws ") + (images != nullptr ? "video only" : "images only"));
        }
        if (images != nullptr) {
            request_check(made, *images);
            const FillingScope filling(*images);
            run->images = {generate_image(made, images), images->batch_count};
        } else {
            request_check(made, *video);
            run->images.images = generate_video(made, video, &run->images.count);
        }
        for (const auto& [weights, found] : placements->demands) {
            if (*count < capacity) {
                demands[*count] = found.demand;
                demands[*count].module = run->keep(found.module.c_str());
                demands[(*count)++].network = run->keep(found.network.c_str());
            }
        }
        return *count > 0 && run->images.images != nullptr;
    });
    return status == SDCPP_BROKEN ? SDCPP_FAILED : status;
}
