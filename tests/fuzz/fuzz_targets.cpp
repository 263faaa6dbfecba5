// What the fuzzer feeds: the readers of model files and of LoRAs' scales, the readers of prompts, what converts tensor
// names, and what finds a LoRA's modules by them.
#include "fuzz_targets.h"

#include <cstdarg>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "model_io/tensor_storage.h"
#include "name_conversion.h"
#include "sdcpp/files/embedding.h"
#include "sdcpp/files/listing.h"
#include "sdcpp/files/model.h"
#include "sdcpp/files/parts.h"
#include "sdcpp/lora/peft.h"
#include "sdcpp/lora/roles.h"
#include "sdcpp/lora/targets.h"
#include "sdcpp/prompt/attention.h"
#include "sdcpp/prompt/pieces.h"
#include "util.h"

// What the engine's util.cpp has, without the engine behind it.
void log_printf(sd_log_level_t, const char*, int, const char*, ...) {}
bool starts_with(const std::string& text, const std::string& start) {
    return text.compare(0, start.size(), start) == 0;
}
bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}
bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}
std::vector<std::string> split_string(const std::string& text, char delimiter) {
    std::vector<std::string> parts(1);
    for (const char letter : text) {
        if (letter == delimiter) {
            parts.emplace_back();
        } else {
            parts.back() += letter;
        }
    }
    return parts;
}

namespace fuzz {

namespace {

// Reads every tensor as the loader would, where the file holds it as it is.
void read_values(const std::string& path, size_t size) {
    std::vector<std::string> paths;
    std::vector<TensorStorage> tensors;
    sdcpp::files::read_model(path, "model.", paths, tensors);
    sdcpp::files::Input input(path);
    const sdcpp::files::ReadAt read = [&](uint64_t position, void* to, size_t count) {
        input.read(position, to, count);
    };
    size_t left = 4 * size;
    for (const auto& tensor : tensors) {
        const auto bytes = static_cast<uint64_t>(tensor.nbytes_to_read());
        if (tensor.nelements() <= 0 || bytes > left) {
            continue;
        }
        left -= static_cast<size_t>(bytes);
        std::vector<char> values(static_cast<size_t>(bytes));
        sdcpp::files::read_tensor(tensor, values.data(), values.size(), read);
    }
}

bool read_file(const std::string& path, const std::string& input) {
    constexpr int64_t widths[][2] = {{4, 0}, {4, 8}};
    bool good = true;
    for (const auto& width : widths) {
        try {
            sdcpp::files::read_embedding(path, width[0], width[1]);
        } catch (const sdcpp::files::FileError&) {
            // Most are none.
        }
    }
    try {
        sdcpp::files::list(path);
        read_values(path, input.size());
    } catch (const sdcpp::files::FileError&) {
        good = false;
    }
    return good;
}

bool read_index(const std::string& path, const std::string& input) {
    const std::string index = path + ".safetensors.index.json";
    std::ofstream(index, std::ios::binary | std::ios::trunc)
        .write(input.data(), static_cast<std::streamsize>(input.size()));
    try {
        for (const auto& part : sdcpp::files::parts(index, "")) {
            sdcpp::files::list(part.path);
        }
    } catch (const sdcpp::files::FileError&) {
        return false;
    }
    return true;
}

bool read_prompt(const std::string&, const std::string& input) {
    sdcpp::clip_pieces(input);
    sdcpp::spaces_joined(input);
    try {
        sdcpp::prompt_attention(input);
    } catch (const std::runtime_error&) {
        return false;  // a weight that is none
    }
    return true;
}

bool convert_names(const std::string&, const std::string& input) {
    for (const SDVersion version :
         {VERSION_SD1, VERSION_SDXL, VERSION_SD3, VERSION_FLUX, VERSION_Z_IMAGE, VERSION_ANIMA}) {
        convert_tensor_name(input, version);
        convert_tensor_name("lora." + input, version);
    }
    return true;
}

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
        lines.push_back(line);
    }
    return lines;
}

// Returns the modules of models that are not foreign: the seeds' own.
const sdcpp::Targets& known_modules(const std::string& path, bool high_noise) {
    static std::map<bool, sdcpp::Targets> known;
    if (known.count(high_noise) == 0) {
        std::map<std::string, ggml_tensor*> tensors;
        std::ifstream file(std::filesystem::path(path).parent_path() / "model-names");
        for (std::string line; std::getline(file, line);) {
            tensors[line] = nullptr;
        }
        known.emplace(high_noise, sdcpp::Targets(tensors, high_noise));
    }
    return known.at(high_noise);
}

// An input is the names of a LoRA's tensors, a line each, and those of a model's as well: both come from files.
bool find_modules(const std::string& path, const std::string& input) {
    std::map<std::string, ggml_tensor*> tensors;
    const std::vector<std::string> names = lines_of(input);
    for (const auto& name : names) {
        tensors[name] = nullptr;
    }
    const sdcpp::Targets own(tensors, names.size() % 2 == 1);
    const sdcpp::Targets& known = known_modules(path, false);
    bool found = false;
    for (const auto& name : names) {
        const auto named = sdcpp::role_of(name);
        const std::string& module = named ? named->module : name;
        for (const sdcpp::Targets* targets : {&known, &own}) {
            const sdcpp::Target* target = targets->find(module);
            found = found || target != nullptr;
            for (const int64_t rows : {0, 1, 4, 12}) {
                if (target != nullptr) {
                    sdcpp::part_row(*target, 12, 4, rows);
                }
            }
        }
    }
    return found;
}

bool read_scales(const std::string& path, const std::string& input) {
    const auto beside = std::filesystem::path(path).parent_path();
    std::ofstream(beside / "adapter_config.json", std::ios::binary | std::ios::trunc)
        .write(input.data(), static_cast<std::streamsize>(input.size()));
    float sum = 0.0f;
    for (const auto& file : {path, (beside / "adapter_model.safetensors").string()}) {
        const sdcpp::PeftScales scales(file);
        for (const int64_t rank : {-1, 0, 4}) {
            sum += scales.scale("transformer.blocks.0.attn", rank) + scales.scale("", rank);
        }
    }
    return sum != 12.0f;  // of a file that says nothing each is 1
}

}  // namespace

const std::map<std::string, Target>& targets() {
    static const std::map<std::string, Target> all = {
        {"safetensors", {read_file, 2}}, {"gguf", {read_file, 2}},       {"torch", {read_file, 2}},
        {"index", {read_index, 128}},     {"prompts", {read_prompt, 128}}, {"names", {convert_names, 128}},
        {"loras", {find_modules, 128}},   {"scales", {read_scales, 128}},
    };
    return all;
}

}  // namespace fuzz
