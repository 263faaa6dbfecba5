// The autoencoder's encoder, which is loaded when a picture goes in for the first time, and how pictures go through it.
#pragma once

#include <map>
#include <stdexcept>
#include <string>

#include "model.h"
#include "sdcpp/api/sdcpp.h"
#include "stable-diffusion.h"

namespace sdcpp {

// A model's files hold no encoder.
struct NoEncoder : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Makes the engine load only the autoencoder of a model on this thread, until the end of the scope.
class AutoencoderScope {
public:
    AutoencoderScope();
    ~AutoencoderScope();
    AutoencoderScope(const AutoencoderScope&) = delete;
    AutoencoderScope& operator=(const AutoencoderScope&) = delete;
};

// Tells whether such a scope is open.
bool autoencoder_only();
// The same; compares a model's tensors with those in its files, and leaves of both only the autoencoder's.
bool autoencoder_only(SDVersion version, std::map<std::string, ggml_tensor*>& tensors, String2TensorStorage& in_files);

// Returns a model's parameters without what its autoencoder has nothing to do with.
sd_ctx_params_t autoencoder_params(const sd_ctx_params_t& params);

// Replaces the autoencoder of a context by one that has its encoder, if it has none, within an AutoencoderScope and the
// scope of its placements. Applied LoRAs are taken off. Throws NoEncoder.
bool encoder_load(sd_ctx_t* ctx, const sd_ctx_params_t* params);
// Tells whether a context's autoencoder has its encoder.
bool encoder_loaded(const sd_ctx_t* ctx);

// The way of a generation's pictures into latents: a phase of its own, where there are any. Latents are the mean of what
// the encoder gives, not a sample: each picture of a batch is then the one that it is alone.
class EncodingScope {
public:
    explicit EncodingScope(const sd_img_gen_params_t& params);
    // Of a video that a network of this name draws; VACE's always encode frames, grey ones where there are none.
    EncodingScope(const sd_vid_gen_params_t& params, const std::string& network);
    ~EncodingScope();
    EncodingScope(const EncodingScope&) = delete;
    EncodingScope& operator=(const EncodingScope&) = delete;
};

// Tells whether such a scope is open.
bool encodes_mean();

// Makes this thread's generation begin from noise alone where it draws anew, until the end of the scope: with a mask and
// the whole strength. As diffusers does; elsewhere noise lies on top of the picture.
class FillingScope {
public:
    explicit FillingScope(const sd_img_gen_params_t& params);
    explicit FillingScope(bool fills);
    ~FillingScope();
    FillingScope(const FillingScope&) = delete;
    FillingScope& operator=(const FillingScope&) = delete;
};

// Tells whether this generation begins so.
bool fills_anew();

// Returns what a context's model is able to do, besides drawing from a text.
sdcpp_abilities_t abilities_of(const sd_ctx_t* ctx);

}  // namespace sdcpp
