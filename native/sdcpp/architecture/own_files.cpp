#include "sdcpp/architecture/own_files.h"

#include <algorithm>

#include "sdcpp/architecture/checkpoint.h"

namespace {

// What of one file belongs to one part.
struct Content {
    const sdcpp::OwnFile* part = nullptr;
    bool mixed = false;  // parts of a checkpoint, or what is none of these
    bool used = false;
    std::string first;
};

}  // namespace

std::vector<sdcpp::OwnFile> sdcpp::own_files(const sd_ctx_params_t& params) {
    // Longer beginnings first. The engine gives clip_vision the beginning that it gives the first text encoder.
    const std::vector<std::pair<const char*, OwnFile>> known = {
        {params.high_noise_diffusion_model_path, {"model.high_noise_diffusion_model."}},
        {params.clip_vision_path, {"cond_stage_model.transformer.vision_model."}},
        {params.clip_g_path, {"text_encoders.clip_g.", "cond_stage_model.1."}},
        {params.clip_l_path, {"text_encoders.clip_l.", "cond_stage_model."}},
        {params.t5xxl_path, {"text_encoders.t5xxl."}},
        {params.llm_vision_path, {"text_encoders.llm.visual."}},
        {params.llm_path, {"text_encoders.llm."}},
        {params.vae_path, {"first_stage_model.", "vae."}},
        {params.taesd_path, {"tae."}},
    };
    std::vector<OwnFile> own;
    for (const auto& [path, beginnings] : known) {
        if (path != nullptr && path[0] != '\0') {
            own.push_back(beginnings);
        }
    }
    return own;
}

void sdcpp::own_files_check(const std::vector<OwnFile>& own, const std::map<std::string, ggml_tensor*>& params,
                            const String2TensorStorage& file) {
    std::map<size_t, Content> files;
    for (const auto& [name, tensor] : file) {
        const OwnFile* part = nullptr;
        for (const OwnFile& each : own) {
            const auto begins = [&name = name](const std::string& beginning) { return starts_with(name, beginning); };
            if (part == nullptr && std::any_of(each.begin(), each.end(), begins)) {
                part = &each;
            }
        }
        Content& content = files[tensor.file_index];
        if (content.first.empty()) {
            content.first = name;
            content.part = part;
        }
        content.mixed = content.mixed || part == nullptr || part != content.part;
        content.used = content.used || params.count(name) != 0;
    }
    for (const OwnFile& part : own) {
        std::string first;
        bool used = false;
        // A part may come in several files, some with nothing but what nobody needs.
        for (const auto& [index, content] : files) {
            if (content.part == &part && !content.mixed) {
                first = first.empty() ? content.first : first;
                used = used || content.used;
            }
        }
        if (!first.empty() && !used) {
            checkpoint::fail("tensor '%s' and the others of its file are of no use to this model", first.c_str());
        }
    }
}
