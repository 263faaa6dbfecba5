#include "sdcpp/lora/loras.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "sdcpp/disk/disk_weights.h"
#include "sdcpp/lora/reader.h"
#include "sdcpp/lora/runtime.h"
#include "sdcpp/lora/weight.h"
#include "sdcpp/placement/context_placements.h"
#include "sdcpp/seams/seams.h"

namespace {

using namespace sdcpp;

const char* const modules[] = {"te", "diffusion", "vae"};

std::vector<Wanted> wanted_of(const sd_lora_t* loras, uint32_t count, const std::string& photo_maker) {
    std::vector<Wanted> wanted;
    const auto add = [&](Wanted one) {
        for (Wanted& other : wanted) {
            if (other.file == one.file && other.high_noise == one.high_noise && other.photo_maker == one.photo_maker) {
                other.strength += one.strength;
                other.te_strength += one.te_strength;
                return;
            }
        }
        wanted.push_back(std::move(one));
    };
    if (!photo_maker.empty()) {
        add({file_identity(photo_maker), 1.0f, 1.0f, false, true});
    }
    for (uint32_t i = 0; i < count; ++i) {
        add({file_identity(loras[i].path == nullptr ? "" : loras[i].path), loras[i].multiplier,
             loras[i].multiplier + loras[i].te_difference, loras[i].is_high_noise, false});
    }
    return wanted;
}

const char* module_of(const std::string& tensor) {
    if (of_text_encoder(tensor)) {
        return modules[0];
    }
    return starts_with(tensor, "first_stage_model.") ? modules[2] : modules[1];
}

// Where changes go: into the tensors, or to the layers of a module.
struct Division {
    std::map<ggml_tensor*, std::vector<const Change*>> merges;
    std::map<std::string, std::vector<const Change*>> attached;

    uint64_t merged_bytes() const {
        uint64_t bytes = 0;
        for (const auto& entry : merges) {
            bytes += ggml_nbytes(entry.first);
        }
        return bytes;
    }
};

Division divide(const std::vector<Change>& changes, bool merge) {
    Division division;
    for (const Change& change : changes) {
        // The layer's output holds its bias already where a change is applied to the output.
        if (!merge && change.of_bias && change.target.on_output) {
            continue;
        }
        if (merge || !applies_at_runtime(change)) {
            division.merges[change.tensor].push_back(&change);
        } else {
            division.attached[module_of(change.target.weight)].push_back(&change);
        }
    }
    return division;
}

// Returns a tensor that would be changed and is on disk; NULL without one.
const ggml_tensor* on_disk(const Division& division) {
    const auto found = std::find_if(division.merges.begin(), division.merges.end(),
                                    [](const auto& entry) { return disk_weights_of(entry.first) != nullptr; });
    return found == division.merges.end() ? nullptr : found->first;
}

std::string no_room_to_keep(uint64_t needed, uint64_t affordable) {
    const auto mib = [](uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; };
    return "LoRA: merging would keep " + mib(needed) +
           " of the model's weights in host memory, to take the LoRA off again, "
           "and " +
           mib(affordable) + " may be used for that: take lora_apply_mode='at_runtime'";
}

// Lets the run be cancelled while weights are merged: asks at most every 50 ms, as graphs do.
class CancelPoll {
public:
    bool cancelled() {
        const auto now = std::chrono::steady_clock::now();
        if (now - last >= std::chrono::milliseconds(50)) {
            last = now;
            std::atomic<bool> stopped{false};
            load_wait(stopped);
        }
        return run_cancelled();
    }

private:
    std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();
};

}  // namespace

namespace sdcpp {

struct Loras::State {
    std::vector<Wanted> applied;
    bool merged = false;
    bool unfinished = false;  // a cancel came in between: some weights are changed that are not to be
    std::unique_ptr<Merger> merger;
    std::map<std::string, std::shared_ptr<RuntimeLoras>> adapters;
};

Loras::Loras() : state(std::make_unique<State>()) {}

Loras::~Loras() = default;

std::shared_ptr<WeightAdapter> Loras::adapter(const std::string& module) const {
    const auto found = state->adapters.find(module);
    return found == state->adapters.end() ? nullptr : found->second;
}

void Loras::apply(const sd_lora_t* loras, uint32_t count, bool merge, const LoraModelParts& parts) {
    std::vector<Wanted> wanted = wanted_of(loras, count, parts.photo_maker);
    if (wanted == state->applied && merge == state->merged && !state->unfinished) {
        return;
    }
    const int64_t start = ggml_time_ms();
    if (state->merger == nullptr) {
        state->merger = std::make_unique<Merger>(parts.n_threads);
    }
    Merger& merger = *state->merger;
    state->applied.clear();
    state->adapters.clear();
    made.clear();
    CancelPoll poll;
    state->unfinished = true;
    if (Placements* const placements = placements_current()) {
        placements->memory_budget.finish_copies();
    }
    if (!merger.restore([&] { return poll.cancelled(); })) {
        return;
    }

    // A run that fails here leaves the model as it was loaded; one that is cancelled leaves that to the next one, since it
    // takes its time.
    OnExit undo([&] {
        state->adapters.clear();
        made.clear();
        if (run_cancelled()) {
            return;
        }
        state->unfinished = false;
        if (!guard([&] {
                merger.restore();
                return true;
            })) {
            context_broken();
        }
    });
    std::vector<std::unique_ptr<Reader>> readers;
    std::vector<Change> changes;
    made.resize(wanted.size());
    std::unique_ptr<Targets> targets[2];
    for (size_t i = 0; i < wanted.size(); ++i) {
        made[i].path = wanted[i].file.path;
        made[i].strength = wanted[i].strength;
        made[i].te_strength = wanted[i].te_strength;
        if (wanted[i].strength == 0.0f && wanted[i].te_strength == 0.0f) {
            continue;
        }
        auto& names = targets[wanted[i].high_noise ? 1 : 0];
        if (names == nullptr) {
            names = std::make_unique<Targets>(parts.tensors, wanted[i].high_noise);
        }
        readers.push_back(std::make_unique<Reader>(wanted[i], parts, i, made[i]));
        std::vector<Change> read = readers.back()->read(*names);
        if (read.empty()) {
            throw std::runtime_error(readers.back()->nothing_fits());
        }
        changes.insert(changes.end(), std::make_move_iterator(read.begin()), std::make_move_iterator(read.end()));
    }

    Division division = divide(changes, merge);
    const uint64_t affordable = host_memory_free() / 2;
    if (merge && division.merged_bytes() > affordable) {
        if (!automatic) {
            throw std::runtime_error(no_room_to_keep(division.merged_bytes(), affordable));
        }
        division = divide(changes, false);
    }
    if (merge && on_disk(division) != nullptr && automatic) {
        division = divide(changes, false);
    }
    if (const ggml_tensor* tensor = on_disk(division)) {
        throw std::runtime_error(
            "LoRA: it changes the weight '" + std::string(ggml_get_name(tensor)) + "', which stays on disk: take " +
            (merge ? "lora_apply_mode='at_runtime'" : "params_backend='cpu' for its module"));
    }
    const bool at_runtime = !division.attached.empty();
    for (LoraReport& report : made) {
        report.merged = !at_runtime;
    }

    std::map<std::string, std::vector<Norms>> norms;
    for (const auto& [module, ours] : division.attached) {
        for (const Change* change : ours) {
            if (poll.cancelled()) {
                return;
            }
            norms[module].push_back(merger.norms(*change));
        }
    }
    for (const auto& [tensor, ours] : division.merges) {
        if (poll.cancelled()) {
            return;
        }
        merger.merge(tensor, ours);
    }
    const auto is_half = [&](const ggml_tensor* tensor) {
        return std::any_of(readers.begin(), readers.end(),
                           [&](const std::unique_ptr<Reader>& reader) { return reader->is_half(tensor); });
    };
    for (const auto& [module, ours] : division.attached) {
        state->adapters[module] =
            std::make_shared<RuntimeLoras>(parts.backend, module.c_str(), ours, norms[module], is_half);
    }
    state->applied = std::move(wanted);
    state->merged = merge;
    state->unfinished = false;
    undo.dismiss();
    for (const LoraReport& report : made) {
        LOG_INFO("LoRA %s: %" PRIu64 " of %" PRIu64 " tensors applied%s%s", report.path.c_str(), report.applied,
                 report.tensors, report.skipped_names.empty() ? "" : "; skipped: ", report.skipped_names.c_str());
    }
    if (!made.empty()) {
        LOG_INFO("LoRAs applied in %.2f s", static_cast<double>(ggml_time_ms() - start) / 1000.0);
    }
}

}  // namespace sdcpp
