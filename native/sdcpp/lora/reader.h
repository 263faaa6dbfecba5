// Reading a LoRA: which of the model's tensors its modules change, and what does not fit.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "sdcpp/lora/file.h"
#include "sdcpp/lora/loras.h"
#include "sdcpp/lora/merge.h"
#include "sdcpp/lora/targets.h"

namespace sdcpp {

// A LoRA that is asked for; the same file twice is one of twice the strength.
struct Wanted {
    FileIdentity file;
    float strength = 0.0f;
    float te_strength = 0.0f;  // for text encoders
    bool high_noise = false;
    bool photo_maker = false;

    bool operator==(const Wanted& other) const {
        return file == other.file && strength == other.strength && te_strength == other.te_strength &&
               high_noise == other.high_noise && photo_maker == other.photo_maker;
    }
};

// Reads one LoRA's file and finds what its modules change.
class Reader {
public:
    Reader(const Wanted& wanted, const LoraModelParts& parts, size_t lora, LoraReport& report)
        : file(wanted.file.path), parts(parts), wanted(wanted), lora(lora), report(report) {}

    // Returns the changes of all modules that fit the model, and counts the others in the report.
    std::vector<Change> read(const Targets& targets);
    // Returns why nothing fits, for a message.
    std::string nothing_fits();

    // Tells whether f16 holds the values of one of its tensors as the file does.
    bool is_half(const ggml_tensor* tensor) const { return file.is_half(tensor); }

private:
    // One module of a file: its tensors by what they are.
    struct Module {
        std::string name;
        std::vector<std::pair<Role, std::string>> tensors;
        const Target* target = nullptr;
    };

    std::vector<Module> modules_of(const Targets& targets);
    void add_module(const Module& module, std::vector<Change>& changes);
    std::string add_weight(const Module& module, Change change, std::vector<Change>& changes);
    std::string add_bias(const Module& module, Change change, std::vector<Change>& changes);
    void skip(const std::string& tensor, const std::string& reason);

    LoraFile file;
    const LoraModelParts& parts;
    const Wanted& wanted;
    const size_t lora;
    LoraReport& report;
    size_t skipped = 0;
    std::string first_skipped;
};

}  // namespace sdcpp
