// What the fuzzer feeds: the readers of model files, the readers of prompts, the conversion of tensor names.
#include "fuzz_targets.h"

#include <cstdarg>
#include <fstream>
#include <stdexcept>
#include <vector>

#include "model_io/tensor_storage.h"
#include "name_conversion.h"
#include "sdcpp/files/embedding.h"
#include "sdcpp/files/listing.h"
#include "sdcpp/files/model.h"
#include "sdcpp/files/parts.h"
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

}  // namespace

const std::map<std::string, Target>& targets() {
    static const std::map<std::string, Target> all = {
        {"safetensors", {read_file, 2}}, {"gguf", {read_file, 2}},       {"torch", {read_file, 2}},
        {"index", {read_index, 128}},     {"prompts", {read_prompt, 128}}, {"names", {convert_names, 128}},
    };
    return all;
}

}  // namespace fuzz
