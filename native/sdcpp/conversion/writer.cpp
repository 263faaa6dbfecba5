#include "sdcpp/conversion/writer.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "gguf.h"
#include "json.hpp"
#include "sdcpp/files/input.h"
#include "sdcpp/values/refused.h"

namespace sdcpp {

namespace {

constexpr uint64_t safetensors_alignment = 8;
constexpr uint64_t gguf_alignment = GGUF_DEFAULT_ALIGNMENT;

uint64_t padded(uint64_t bytes, uint64_t alignment) {
    return (bytes + alignment - 1) / alignment * alignment;
}

const char* safetensors_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
            return "F32";
        case GGML_TYPE_F16:
            return "F16";
        case GGML_TYPE_BF16:
            return "BF16";
        case GGML_TYPE_I32:
            return "I32";
        default:
            return nullptr;
    }
}

[[noreturn]] void fail() {
    const int code = errno;
    throw std::runtime_error(std::string("target: ") + (code != 0 ? std::strerror(code) : "it cannot be written"));
}

// The format: https://huggingface.co/docs/safetensors/index
class SafetensorsWriter : public Writer {
public:
    SafetensorsWriter(const std::string& path, const std::vector<Entry>& entries, const Texts& metadata)
        : Writer(path, 1) {
        nlohmann::ordered_json listed = nlohmann::ordered_json::object();
        for (const auto& [key, value] : metadata) {
            listed["__metadata__"][key] = value;
        }
        for (const Entry& entry : entries) {
            const char* type = safetensors_type(entry.type);
            if (type == nullptr) {
                throw Refused("safetensors has no type " + std::string(ggml_type_name(entry.type)) + " (tensor " +
                              files::shown(entry.name) + "); write GGUF, or choose f32, f16 or bf16");
            }
            listed[entry.name] = {
                {"dtype", type}, {"shape", entry.shape}, {"data_offsets", {data, data + entry.bytes()}}};
            data += entry.bytes();
        }
        text = listed.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
        text.resize(padded(text.size(), safetensors_alignment), ' ');
    }
    uint64_t size() const override { return sizeof(uint64_t) + text.size() + data; }

protected:
    std::string header() const override {
        const uint64_t length = text.size();
        return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text;
    }

private:
    std::string text;
    uint64_t data = 0;
};

struct Free {
    void operator()(gguf_context* context) const { gguf_free(context); }
    void operator()(ggml_context* context) const { ggml_free(context); }
};

class GgufWriter : public Writer {
public:
    GgufWriter(const std::string& path, const std::vector<Entry>& entries, const Texts& metadata,
               const std::string& source)
        : Writer(path, gguf_alignment), values(gguf_init_empty()) {
        std::unique_ptr<ggml_context, Free> tensors(
            ggml_init({(entries.size() + 1) * ggml_tensor_overhead(), nullptr, true}));
        if (!source.empty()) {
            const std::unique_ptr<gguf_context, Free> old(gguf_init_from_file(source.c_str(), {true, nullptr}));
            if (old == nullptr) {
                throw files::FileError(source + " holds values that cannot be read");
            }
            gguf_set_kv(values.get(), old.get());
            gguf_remove_key(values.get(), GGUF_KEY_GENERAL_ALIGNMENT);
            gguf_remove_key(values.get(), "general.file_type");  // the type that most tensors had
        }
        for (const auto& [key, value] : metadata) {
            gguf_set_val_str(values.get(), key.c_str(), value.c_str());
        }
        gguf_set_val_u32(values.get(), "general.quantization_version", GGML_QNT_VERSION);
        for (const Entry& entry : entries) {
            if (entry.name.size() >= GGML_MAX_NAME) {
                throw Refused("GGUF has no room for a name of " + std::to_string(entry.name.size()) +
                              " bytes (tensor " + files::shown(entry.name) + "); write safetensors");
            }
            std::vector<int64_t> ne(entry.shape.rbegin(), entry.shape.rend());
            while (ne.size() > GGML_MAX_DIMS) {  // the slowest ones become one, as the engine reads them
                const int64_t slowest = ne.back();
                ne.pop_back();
                ne.back() *= slowest;
            }
            ne.resize(std::max<size_t>(ne.size(), 1), 1);
            ggml_tensor* tensor = ggml_new_tensor(tensors.get(), entry.type, static_cast<int>(ne.size()), ne.data());
            ggml_set_name(tensor, entry.name.c_str());
            gguf_add_tensor(values.get(), tensor);
            data += padded(entry.bytes(), gguf_alignment);
        }
    }
    uint64_t size() const override { return gguf_get_meta_size(values.get()) + data; }

protected:
    std::string header() const override {
        std::string text(gguf_get_meta_size(values.get()), '\0');
        gguf_get_meta_data(values.get(), text.data());
        return text;
    }

private:
    std::unique_ptr<gguf_context, Free> values;
    uint64_t data = 0;
};

}  // namespace

void Writer::put(const void* data, uint64_t bytes) {
    errno = 0;
    if (!file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes))) {
        fail();
    }
}

void Writer::begin() {
    errno = 0;
    file.open(path, std::ios::binary | std::ios::trunc);
    if (!file) {
        fail();
    }
    const std::string text = header();
    put(text.data(), text.size());
}

void Writer::write(const void* data, uint64_t bytes) {
    put(data, bytes);
    const std::string zeros(padded(bytes, alignment) - bytes, '\0');
    put(zeros.data(), zeros.size());
}

void Writer::end() {
    errno = 0;
    file.close();
    if (!file) {
        fail();
    }
}

bool safetensors_has(ggml_type type) {
    return safetensors_type(type) != nullptr;
}

std::unique_ptr<Writer> safetensors_writer(const std::string& path, const std::vector<Entry>& entries,
                                           const Texts& metadata) {
    return std::make_unique<SafetensorsWriter>(path, entries, metadata);
}

std::unique_ptr<Writer> gguf_writer(const std::string& path, const std::vector<Entry>& entries, const Texts& metadata,
                                    const std::string& source) {
    return std::make_unique<GgufWriter>(path, entries, metadata, source);
}

}  // namespace sdcpp
