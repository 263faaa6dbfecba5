// The entry points: each is one run, which waits for its turn, looks its context up, and reports how it ended.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "sdcpp/api/run.h"
#include "sdcpp/api/turns.h"
#include "sdcpp/autoencoder/autoencoder.h"
#include "sdcpp/lora/loras.h"
#include "sdcpp/placement/placement_report.h"
#include "sdcpp/placement/runner_placement.h"
#include "sdcpp/upscaling/upscaler.h"
#include "sdcpp/values/noise_levels.h"
#include "util.h"

struct sdcpp_ctx {
    std::shared_ptr<sdcpp::Context> context;
};

namespace {

using namespace sdcpp;

// Runs a function on a context that has loaded something, when its turn has come.
template <typename F>
sdcpp_status_t with_context(Run& run, const sdcpp_ctx_t& ctx, F&& function) {
    if (forked()) {
        return SDCPP_FORKED;
    }
    const Turn turn(run, context_claim(*ctx.context), ctx.context);
    if (turn.status() != SDCPP_OK) {
        return turn.status();
    }
    if (ctx.context->placements == nullptr) {
        return SDCPP_CLOSED;
    }
    const sdcpp_status_t status = run_guarded(run, [&] { return function(*ctx.context); });
    if (status == SDCPP_BROKEN && context_close(*ctx.context)) {
        context_free_later(ctx.context);
    }
    return status;
}

// The same, on a model that draws.
template <typename F>
sdcpp_status_t with_model(Run& run, const sdcpp_ctx_t& ctx, F&& function) {
    return with_context(run, ctx, [&](const Context& context) { return function(context.loaded); });
}

// Fills in what a table says of a context.
template <typename Row, typename F>
sdcpp_status_t table(Run& run, const sdcpp_ctx_t& ctx, Row* rows, int capacity, int* count, F&& fill) {
    *count = 0;
    return with_context(run, ctx, [&](const Context& context) {
        for (int index = 0; *count < capacity; ++index) {
            const Filled filled = fill(context, index, rows[*count]);
            if (filled == Filled::end) {
                break;
            }
            *count += filled == Filled::row;
        }
        return true;
    });
}

sdcpp_lora_t lora_row(Run& run, const LoraReport& report) {
    return {run.keep(report.path.c_str()),
            report.strength,
            report.te_strength,
            report.merged,
            report.tensors,
            report.applied,
            report.tensors - report.applied,
            run.keep(report.skipped_names.c_str())};
}

// Draws with a loaded model: a request's pictures, or its video. The function returns what it drew.
template <typename Request, typename F>
sdcpp_status_t generate(Run& run, const sdcpp_ctx_t& ctx, const Request& request, F&& draw) {
    return with_model(run, ctx, [&](sd_ctx_t* loaded) {
        request_check(loaded, request);
        placements_of(loaded)->memory_budget.begin_generation();
        const OnExit note([&] {
            for (const LoraReport& report : loras_of(loaded).reports()) {
                run.loras.push_back(lora_row(run, report));
            }
        });
        run.images = draw(loaded);
        return run.images.images != nullptr;
    });
}

// Notes what a loaded model says of itself, which never changes.
void describe(Context& context, sd_ctx_t* loaded) {
    context.clip_layers = placements_of(loaded)->clip_layers;
    context.abilities = abilities_of(loaded);
    context.traits = placements_of(loaded)->traits;
    context.sampler = sd_get_default_sample_method(loaded);
    for (int sampler = 0; sampler < SAMPLE_METHOD_COUNT; ++sampler) {
        context.schedulers.push_back(sd_get_default_scheduler(loaded, static_cast<sample_method_t>(sampler)));
    }
}

// Loads something into an empty context, with its modules placed.
template <typename P, typename F>
sdcpp_status_t load(Run& run, const sdcpp_ctx_t& ctx, const sdcpp_placement_t* placements, int count, P&& place,
                    F&& function) {
    if (forked()) {
        return SDCPP_FORKED;
    }
    Context& context = *ctx.context;
    std::shared_ptr<Placements> wanted;
    sdcpp_status_t status = run_guarded(run, [&] {
        backends_load();
        wanted = place();
        wanted->apply(placements, count);
        context_claim(context, {wanted->runtime_devices(), false});
        return true;
    });
    if (status == SDCPP_OK) {
        const Turn turn(run, context_claim(context), ctx.context);
        if (turn.status() != SDCPP_OK) {
            return turn.status();
        }
        status = run_guarded(run, [&] {
            const bool loaded = function(context, wanted);
            wanted->settle();
            return loaded;
        });
        if (status == SDCPP_OK) {
            context_claim(context, {wanted->runtime_devices(), false});
        } else {
            context_unload(context, run);
            context_close(context);
        }
    }
    // Nothing of a context that could not be made is left to be broken.
    return status == SDCPP_BROKEN ? SDCPP_FAILED : status;
}

// Returns what the weights of each module would take.
std::map<std::string, uint64_t> survey(const sd_ctx_params_t& params) {
    backends_load();
    sd_ctx_params_t wanted = params;
    // Loading PhotoMaker reads weights while the context is made, so its file is looked at by itself.
    wanted.photo_maker_path = nullptr;
    auto placements = std::make_shared<Placements>(&wanted);
    placements->survey_begin();
    PlacementScope scope(placements);
    if (sd_ctx_t* made = new_sd_ctx(&wanted)) {
        free_sd_ctx(made);
    }
    return placements->surveyed;
}

// Returns a model's parameters without what its autoencoder has nothing to do with.
sd_ctx_params_t autoencoder_params(const sd_ctx_params_t& params) {
    sd_ctx_params_t wanted = params;
    wanted.vae_decode_only = false;
    wanted.embeddings = nullptr;
    wanted.embedding_count = 0;
    return wanted;
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
        auto bytes = survey(*params);
        if (bytes.empty()) {
            return false;
        }
        if (params->photo_maker_path != nullptr && params->photo_maker_path[0] != '\0') {
            bytes["photomaker"] += file_bytes(params->photo_maker_path, "pmid.");
        }
        for (const auto& name : module_names) {
            if (bytes.count(name) != 0 && *count < capacity) {
                weights[(*count)++] = {name.c_str(), bytes[name]};
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
        const uint64_t whole = survey(with)["vae"];
        const bool none = !run->error.empty();  // NoEncoder, or files that are gone
        *bytes = params->vae_decode_only && !none ? whole - survey(without)["vae"] : 0;
        return true;
    });
    return status == SDCPP_BROKEN ? SDCPP_FAILED : status;
}

sdcpp_ctx_t* sdcpp_ctx_new(void) {
    return forked() ? new sdcpp_ctx{} : new sdcpp_ctx{context_new()};
}

sdcpp_status_t sdcpp_ctx_load(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sd_ctx_params_t* params,
                              const sdcpp_placement_t* placements, int count) {
    return load(
        *run, *ctx, placements, count, [&] { return std::make_shared<Placements>(params); },
        [&](Context& context, const std::shared_ptr<Placements>& wanted) {
            PlacementScope scope(wanted);
            context.loaded = new_sd_ctx(params);
            if (context.loaded != nullptr) {
                context.placements = wanted;
                describe(context, context.loaded);
            }
            return context.loaded != nullptr;
        });
}

void sdcpp_upscaler_params_init(sdcpp_upscaler_params_t* params) {
    *params = {nullptr, sd_get_num_physical_cores(), false, 0.0f, SD_KERNELS_FAST};
}

void sdcpp_upscale_params_init(sdcpp_upscale_params_t* params) {
    constexpr int usual_tile = 128;
    *params = {{0, 0, 0, nullptr}, usual_tile};
}

sdcpp_status_t sdcpp_upscaler_survey(sdcpp_run_t* run, const sdcpp_upscaler_params_t* params, uint64_t* bytes) {
    *bytes = 0;
    const Turn turn(*run, Claim{});
    if (turn.status() != SDCPP_OK) {
        return turn.status();
    }
    const sdcpp_status_t status = run_guarded(*run, [&] {
        backends_load();
        *bytes = Upscaler::survey(*params);
        return *bytes > 0;
    });
    return status == SDCPP_BROKEN ? SDCPP_FAILED : status;
}

sdcpp_status_t sdcpp_upscaler_load(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sdcpp_upscaler_params_t* params,
                                   const sdcpp_placement_t* placements, int count) {
    return load(
        *run, *ctx, placements, count, [&] { return Upscaler::place(*params); },
        [&](Context& context, const std::shared_ptr<Placements>& wanted) {
            context.upscaler = Upscaler::load(*params, wanted);
            if (context.upscaler != nullptr) {
                context.placements = wanted;
                context.upscale_factor = context.upscaler->factor();
            }
            return context.upscaler != nullptr;
        });
}

sdcpp_status_t sdcpp_upscale(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sdcpp_upscale_params_t* params,
                             sd_image_t* image) {
    *image = {0, 0, 0, nullptr};
    const sdcpp_status_t status = with_context(*run, *ctx, [&](const Context& context) {
        auto* const made = static_cast<sd_image_t*>(std::calloc(1, sizeof(sd_image_t)));
        if (made == nullptr) {
            throw std::bad_alloc();
        }
        run->images = {made, 1};
        *made = context.upscaler->upscale(params->image, params->tile_size);
        return made->data != nullptr;
    });
    if (status == SDCPP_OK) {
        *image = run->images.images[0];
    }
    return status;
}

int sdcpp_ctx_upscale_factor(const sdcpp_ctx_t* ctx) {
    return ctx->context ? ctx->context->upscale_factor : 0;
}

sdcpp_status_t sdcpp_ctx_load_encoder(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sd_ctx_params_t* params) {
    return with_model(*run, *ctx, [&](sd_ctx_t* loaded) {
        if (encoder_loaded(loaded)) {
            return true;
        }
        const auto placements = placements_of(loaded);
        const sd_ctx_params_t wanted = autoencoder_params(*params);
        const OnExit not_loading([&] { placements->load_end(); });
        const PlacementScope scope(placements);
        const AutoencoderScope autoencoder;
        const bool done = encoder_load(loaded, &wanted);
        placements->settle();
        return done;
    });
}

sdcpp_status_t sdcpp_image_generate(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sd_img_gen_params_t* params,
                                    sd_image_t** images) {
    *images = nullptr;
    const sdcpp_status_t status = generate(*run, *ctx, *params, [&](sd_ctx_t* loaded) {
        run->pictures = params->batch_count;
        const FillingScope filling(*params);
        return Images{generate_image(loaded, params), params->batch_count};
    });
    *images = status == SDCPP_OK ? run->images.images : nullptr;
    return status;
}

sdcpp_status_t sdcpp_video_generate(sdcpp_run_t* run, sdcpp_ctx_t* ctx, const sd_vid_gen_params_t* params,
                                    sd_image_t** frames, int* count) {
    *frames = nullptr;
    *count = 0;
    const sdcpp_status_t status = generate(*run, *ctx, *params, [&](sd_ctx_t* loaded) {
        Images video;
        video.images = generate_video(loaded, params, &video.count);
        return video;
    });
    if (status == SDCPP_OK) {
        *frames = run->images.images;
        *count = run->images.count;
    }
    return status;
}

sdcpp_status_t sdcpp_ctx_memory(sdcpp_run_t* run, sdcpp_ctx_t* ctx, sdcpp_memory_t* rows, int capacity, int* count) {
    return table(*run, *ctx, rows, capacity, count, [&](const Context& context, int index, sdcpp_memory_t& row) {
        const Filled filled = memory_row(*context.placements, index, row);
        if (filled == Filled::row) {
            for (const char** text : {&row.module, &row.runtime_device, &row.params_device, &row.wanted_buffer_type,
                                      &row.buffer_type, &row.reason}) {
                *text = run->keep(*text);
            }
        }
        return filled;
    });
}

sdcpp_status_t sdcpp_ctx_transfers(sdcpp_run_t* run, sdcpp_ctx_t* ctx, sdcpp_transfer_t* rows, int capacity,
                                   int* count) {
    return table(*run, *ctx, rows, capacity, count, [&](const Context& context, int index, sdcpp_transfer_t& row) {
        const Filled filled = transfer_row(*context.placements, index, row);
        if (filled == Filled::row) {
            row.module = run->keep(row.module);
        }
        return filled;
    });
}

sdcpp_status_t sdcpp_ctx_streams(sdcpp_run_t* run, sdcpp_ctx_t* ctx, sdcpp_stream_t* rows, int capacity, int* count) {
    return table(*run, *ctx, rows, capacity, count, [&](const Context& context, int index, sdcpp_stream_t& row) {
        const Filled filled = stream_row(*context.placements, index, row);
        if (filled == Filled::row) {
            for (const char** text :
                 {&row.module, &row.runner, &row.device, &row.mode, &row.reason, &row.resident, &row.streamed}) {
                *text = run->keep(*text);
            }
        }
        return filled;
    });
}

sdcpp_status_t sdcpp_ctx_loras(sdcpp_run_t* run, sdcpp_ctx_t* ctx, sdcpp_lora_t* rows, int capacity, int* count) {
    return table(*run, *ctx, rows, capacity, count, [&](const Context& context, int index, sdcpp_lora_t& row) {
        const auto& reports = loras_of(context.loaded).reports();
        if (index >= static_cast<int>(reports.size())) {
            return Filled::end;
        }
        row = lora_row(*run, reports[static_cast<size_t>(index)]);
        return Filled::row;
    });
}

void sdcpp_ctx_traits(const sdcpp_ctx_t* ctx, sdcpp_traits_t* traits) {
    *traits = ctx->context ? ctx->context->traits : sdcpp_traits_t{};
}

int sdcpp_ctx_clip_layers(const sdcpp_ctx_t* ctx) {
    return ctx->context ? ctx->context->clip_layers : 0;
}

void sdcpp_ctx_abilities(const sdcpp_ctx_t* ctx, sdcpp_abilities_t* abilities) {
    *abilities = ctx->context ? ctx->context->abilities : sdcpp_abilities_t{};
}

sample_method_t sdcpp_ctx_sampler(const sdcpp_ctx_t* ctx) {
    return ctx->context ? ctx->context->sampler : SAMPLE_METHOD_COUNT;
}

scheduler_t sdcpp_ctx_scheduler(const sdcpp_ctx_t* ctx, sample_method_t sampler) {
    const auto index = static_cast<size_t>(sampler);
    return ctx->context && index < ctx->context->schedulers.size() ? ctx->context->schedulers[index] : SCHEDULER_COUNT;
}

void sdcpp_ctx_cancel(sdcpp_ctx_t* ctx) {
    if (!forked()) {
        context_cancel(*ctx->context);
    }
}

sdcpp_status_t sdcpp_ctx_close(sdcpp_run_t* run, sdcpp_ctx_t* ctx) {
    if (forked()) {
        return SDCPP_FORKED;
    }
    if (!context_close(*ctx->context)) {
        return SDCPP_OK;
    }
    if (run != nullptr) {
        const Turn turn(*run, context_claim(*ctx->context), ctx->context, true);
        if (turn.status() == SDCPP_OK) {
            context_unload(*ctx->context, *run);
            return SDCPP_OK;
        }
    }
    context_free_later(ctx->context);
    return SDCPP_OK;
}

bool sdcpp_ctx_closed(const sdcpp_ctx_t* ctx) {
    return forked() || context_closed(*ctx->context);
}

void sdcpp_ctx_free(sdcpp_ctx_t* ctx) {
    // A child has copies of what its parent goes on using, and devices that it cannot talk to.
    if (!forked()) {
        sdcpp_ctx_close(nullptr, ctx);
        delete ctx;
    }
}
