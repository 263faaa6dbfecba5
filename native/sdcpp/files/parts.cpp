// The files that a model consists of.
#include "sdcpp/files/parts.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "json.hpp"
#include "sdcpp/files/listing.h"

namespace sdcpp::files {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const char* const pipeline_index = "model_index.json";
const std::string shard_index = ".safetensors.index.json";

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// A name that the system refuses is no file.
bool is_file(const fs::path& path) {
    std::error_code error;
    return fs::is_regular_file(path, error);
}

bool is_folder(const fs::path& path) {
    std::error_code error;
    return fs::is_directory(path, error);
}

Json read_json(const fs::path& path) {
    constexpr uint64_t most = 16 << 20;
    Input input(path.string());
    if (input.size() > most) {
        throw FileError(path.filename().string() + " is larger than an index can be");
    }
    std::string text(static_cast<size_t>(input.size()), '\0');
    input.read(0, text.data(), text.size());
    Json json = Json::parse(text, nullptr, false);
    if (!json.is_object()) {
        throw FileError(path.filename().string() + " is damaged: it is no JSON object");
    }
    return json;
}

// Returns a file beside an index. Throws FileError for a name that would lead elsewhere.
fs::path beside(const fs::path& folder, const std::string& name) {
    const fs::path path(name);
    if (name.empty() || name == "." || name == ".." || path.has_root_path() || path.has_parent_path() ||
        name.find_first_of("/\\:") != std::string::npos || name.find('\0') != std::string::npos) {
        throw FileError("names a shard " + shown(name) + " that does not lie beside it");
    }
    const fs::path found = folder / path;
    if (!is_file(found)) {
        throw FileError("lacks the shard " + shown(name));
    }
    return found;
}

std::vector<Part> shards(const fs::path& index, const std::string& prefix) {
    const Json json = read_json(index);
    const auto map = json.find("weight_map");
    if (map == json.end() || !map->is_object() || map->empty()) {
        throw FileError("is no index of shards: it has no weight_map");
    }
    std::map<std::string, std::vector<std::string>> tensors;
    for (const auto& [tensor, shard] : map->items()) {
        if (!shard.is_string()) {
            throw FileError("is damaged: a shard's name is no text");
        }
        tensors[shard.get<std::string>()].push_back(tensor);
    }
    std::vector<Part> found;
    for (auto& [name, those] : tensors) {
        found.push_back({beside(index.parent_path(), name).string(), prefix, std::move(those)});
    }
    return found;
}

// Returns the files of the one model in a folder.
std::vector<Part> folder_parts(const fs::path& folder, const std::string& prefix, const std::string& shown_folder) {
    std::vector<fs::path> indexes;
    std::vector<fs::path> whole;
    std::error_code unreadable;
    for (const auto& entry : fs::directory_iterator(folder, unreadable)) {
        const std::string name = entry.path().filename().string();
        if (!is_file(entry.path())) {
            continue;
        }
        if (ends_with(name, shard_index)) {
            indexes.push_back(entry.path());
        } else if (ends_with(name, ".safetensors") && !contains(name, "-of-")) {
            whole.push_back(entry.path());
        }
    }
    if (unreadable) {
        throw FileError("cannot be read: " + unreadable.message());
    }
    // The usual names first, then what is alone; variants such as model.fp16.safetensors stand beside the usual one.
    for (const std::string usual : {"diffusion_pytorch_model", "model", "pytorch_model"}) {
        if (!is_file(folder / (usual + ".safetensors")) && !is_file(folder / (usual + shard_index))) {
            continue;
        }
        const auto is_variant = [&](const fs::path& path) {
            const std::string name = path.filename().string();
            return name.compare(0, usual.size() + 1, usual + ".") == 0 && name != usual + ".safetensors" &&
                   name != usual + shard_index;
        };
        for (auto* found : {&indexes, &whole}) {
            found->erase(std::remove_if(found->begin(), found->end(), is_variant), found->end());
        }
        break;
    }
    if (indexes.size() + whole.size() == 1) {
        return indexes.empty() ? std::vector<Part>{{whole[0].string(), prefix}} : shards(indexes[0], prefix);
    }
    if (indexes.empty() && whole.empty()) {
        for (const char* usual : {"diffusion_pytorch_model.bin", "pytorch_model.bin", "model.bin"}) {
            if (is_file(folder / usual)) {
                return {{(folder / usual).string(), prefix}};
            }
        }
    }
    const std::string count = std::to_string(indexes.size() + whole.size());
    throw FileError(shown_folder + "is a folder that holds " + (count == "0" ? "no model" : count + " models") +
                    "; pass a file of it");
}

// Returns the class of a pipeline's part, such as "CLIPTextModel", or "".
std::string class_of(const Json& pipeline, const std::string& part) {
    const auto entry = pipeline.find(part);
    if (entry == pipeline.end() || !entry->is_array() || entry->size() != 2 || !(*entry)[1].is_string()) {
        return "";
    }
    return (*entry)[1].get<std::string>();
}

// Returns the engine's prefix for a text encoder of a pipeline, or "".
std::string encoder_prefix(const std::string& kind, bool unet, int clips) {
    if (contains(kind, "CLIPText")) {
        if (unet) {
            return clips == 0 ? "cond_stage_model.transformer." : "cond_stage_model.1.transformer.";
        }
        return clips == 0 ? "text_encoders.clip_l.transformer." : "text_encoders.clip_g.transformer.";
    }
    return contains(kind, "T5") ? "text_encoders.t5xxl.transformer." : "text_encoders.llm.";
}

std::vector<Part> pipeline_parts(const fs::path& folder) {
    const Json pipeline = read_json(folder / pipeline_index);
    std::vector<Part> found;
    auto take = [&](const std::string& name, const std::string& prefix) {
        if (!is_folder(folder / name)) {
            throw FileError("lacks the folder " + shown(name) + " that its " + pipeline_index + " names");
        }
        for (auto& part : folder_parts(folder / name, prefix, shown(name) + " in it ")) {
            found.push_back(std::move(part));
        }
    };
    const bool unet = !class_of(pipeline, "unet").empty();
    const bool pair = !class_of(pipeline, "transformer_2").empty();
    if (unet) {
        take("unet", "unet.");
    } else if (!class_of(pipeline, "transformer").empty()) {
        // Of two transformers the first one works while there is much noise.
        take("transformer", pair ? "model.high_noise_diffusion_model." : "model.diffusion_model.");
        if (pair) {
            take("transformer_2", "model.diffusion_model.");
        }
    } else {
        throw FileError("is a folder in diffusers' layout without a diffusion model");
    }
    if (!class_of(pipeline, "vae").empty()) {
        take("vae", "vae.");
    }
    // Beside a UNet it serves IP adapters, which the engine does not know.
    if (!unet && contains(class_of(pipeline, "image_encoder"), "CLIPVision")) {
        take("image_encoder", "cond_stage_model.transformer.");
    }
    int clips = 0;
    for (const char* name : {"text_encoder", "text_encoder_2", "text_encoder_3"}) {
        const std::string kind = class_of(pipeline, name);
        if (!kind.empty()) {
            take(name, encoder_prefix(kind, unet, clips));
            clips += contains(kind, "CLIPText") ? 1 : 0;
        }
    }
    return found;
}

}  // namespace

void check_part(const Part& part, const Listing& listing) {
    if (part.tensors.empty()) {
        return;
    }
    std::unordered_set<std::string_view> there(listing.left_out_names.begin(), listing.left_out_names.end());
    for (const auto& tensor : listing.tensors) {
        there.insert(tensor.name);
    }
    for (const auto& name : part.tensors) {
        if (there.count(name) == 0) {
            throw FileError("lacks the tensor " + shown(name) + " that the index puts there");
        }
    }
}

std::vector<Part> parts(const std::string& path, const std::string& prefix) {
    const fs::path file(path);
    if (is_folder(file)) {
        return is_file(file / pipeline_index) ? pipeline_parts(file) : folder_parts(file, prefix, "");
    }
    return ends_with(path, shard_index) ? shards(file, prefix) : std::vector<Part>{{path, prefix}};
}

}  // namespace sdcpp::files
