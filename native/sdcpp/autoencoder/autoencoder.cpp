// Loading the autoencoder alone, and what the engine asks about it.
#include "sdcpp/autoencoder/autoencoder.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "sdcpp/seams/seams.h"

namespace {

thread_local int scopes = 0;
thread_local int encodings = 0;
thread_local bool fills = false;

bool of_autoencoder(const std::string& name) {
    return name.rfind("first_stage_model.", 0) == 0 || name.rfind("tae.", 0) == 0;
}

// Leaves of a map by name only some.
template <typename Map, typename F>
void keep_only(Map& map, F&& kept) {
    for (auto entry = map.begin(); entry != map.end();) {
        entry = kept(entry->first) ? std::next(entry) : map.erase(entry);
    }
}

}  // namespace

namespace sdcpp {

AutoencoderScope::AutoencoderScope() {
    ++scopes;
}

AutoencoderScope::~AutoencoderScope() {
    --scopes;
}

bool autoencoder_only() {
    return scopes > 0;
}

bool autoencoder_only(SDVersion version, std::map<std::string, ggml_tensor*>& tensors,
                      String2TensorStorage& in_files) {
    if (scopes == 0) {
        return false;
    }
    const auto encodes = [](const auto& entry) {
        return of_autoencoder(entry.first) && entry.first.find(".encoder.") != std::string::npos;
    };
    const auto needed = std::find_if(tensors.begin(), tensors.end(), encodes);
    const auto there = [&](const auto& entry) { return encodes(entry) && in_files.count(entry.first) != 0; };
    if (needed != tensors.end() && std::none_of(tensors.begin(), tensors.end(), there)) {
        throw NoEncoder(needed->first.rfind("tae.", 0) == 0
                            ? "taesd holds a decoder alone, and a picture that goes in needs an encoder: pass taesd=... "
                              "with a whole one, or tae_preview_only=True, with which the VAE encodes and decodes"
                            : "the model's files hold no encoder of pictures (VAE): pass vae=... with a whole one");
    }
    architecture_check(version, tensors, in_files);
    keep_only(tensors, of_autoencoder);
    keep_only(in_files, [&](const std::string& name) { return tensors.count(name) != 0; });
    return true;
}

EncodingScope::EncodingScope(const sd_img_gen_params_t& params) {
    ++encodings;
    if (params.init_image.data != nullptr || params.ref_images_count > 0) {
        phase_begin("encoding");
    }
}

EncodingScope::EncodingScope(const sd_vid_gen_params_t& params, const std::string& network) {
    ++encodings;
    const bool pictures = params.init_image.data != nullptr || params.end_image.data != nullptr;
    if (pictures || network.find("VACE") != std::string::npos) {
        phase_begin("encoding");
    }
}

EncodingScope::~EncodingScope() {
    --encodings;
}

bool encodes_mean() {
    return encodings > 0;
}

FillingScope::FillingScope(const sd_img_gen_params_t& params)
    : FillingScope(params.mask_image.data != nullptr && params.init_image.data != nullptr && params.strength >= 1.0f) {}

FillingScope::FillingScope(bool value) {
    fills = value;
}

FillingScope::~FillingScope() {
    fills = false;
}

bool fills_anew() {
    return fills;
}

sd_ctx_params_t autoencoder_params(const sd_ctx_params_t& params) {
    sd_ctx_params_t wanted = params;
    wanted.vae_decode_only = false;
    wanted.embeddings = nullptr;
    wanted.embedding_count = 0;
    return wanted;
}

}  // namespace sdcpp
