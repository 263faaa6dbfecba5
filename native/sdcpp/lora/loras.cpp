#include "sdcpp/lora/loras.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "sdcpp/api/sdcpp.h"
#include "sdcpp/lora/file.h"
#include "sdcpp/lora/made_for.h"
#include "sdcpp/lora/merge.h"
#include "sdcpp/lora/runtime.h"
#include "sdcpp/lora/targets.h"
#include "sdcpp/seams/seams.h"

namespace {

using namespace sdcpp;

// Names of skipped tensors that a report gives.
constexpr size_t names_shown = 5;

const char* const modules[] = {"te", "diffusion", "vae"};

// A LoRA that is asked for; the same file twice is one of twice the strength.
struct Wanted {
    FileIdentity file;
    float strength = 0.0f;
    bool high_noise = false;
    bool photo_maker = false;

    bool operator==(const Wanted& other) const {
        return file == other.file && strength == other.strength && high_noise == other.high_noise &&
               photo_maker == other.photo_maker;
    }
};

std::vector<Wanted> wanted_of(const sd_lora_t* loras, uint32_t count, const std::string& photo_maker) {
    std::vector<Wanted> wanted;
    const auto add = [&](Wanted one) {
        for (Wanted& other : wanted) {
            if (other.file == one.file && other.high_noise == one.high_noise && other.photo_maker == one.photo_maker) {
                other.strength += one.strength;
                return;
            }
        }
        wanted.push_back(std::move(one));
    };
    if (!photo_maker.empty()) {
        add({file_identity(photo_maker), 1.0f, false, true});
    }
    for (uint32_t i = 0; i < count; ++i) {
        add({file_identity(loras[i].path == nullptr ? "" : loras[i].path), loras[i].multiplier, loras[i].is_high_noise,
             false});
    }
    return wanted;
}

const char* module_of(const std::string& tensor) {
    if (starts_with(tensor, "cond_stage_model.") || starts_with(tensor, "text_encoders.")) {
        return modules[0];
    }
    return starts_with(tensor, "first_stage_model.") ? modules[2] : modules[1];
}

// One module of a file: its tensors by what they are.
struct Module {
    std::string name;
    std::vector<std::pair<Role, std::string>> tensors;
    const Target* target = nullptr;
};

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t size : shape) {
        text += (text.empty() ? "" : " x ") + std::to_string(size);
    }
    return text;
}

// Swaps the halves of a tensor's first dimension, in which it gives two vectors in the other order.
void swap_halves(const Factor& factor) {
    float* values = static_cast<float*>(factor.tensor->data);
    const int64_t half = ggml_nelements(factor.tensor) / 2;
    std::swap_ranges(values, values + half, values + half);
}

// Reads one LoRA's file and finds what its modules change.
class Reader {
public:
    Reader(const Wanted& wanted, const LoraModelParts& parts, size_t lora, LoraReport& report)
        : file(wanted.file.path), parts(parts), wanted(wanted), lora(lora), report(report) {}

    std::vector<Change> read(const Targets& targets);

    LoraFile file;

private:
    std::vector<Module> modules_of(const Targets& targets);
    void add_module(const Module& module, std::vector<Change>& changes);
    std::string add_weight(const Module& module, Change change, std::vector<Change>& changes);
    std::string add_bias(const Module& module, Change change, std::vector<Change>& changes);
    void skip(const std::string& tensor, const std::string& reason);

    const LoraModelParts& parts;
    const Wanted& wanted;
    const size_t lora;
    LoraReport& report;
    size_t skipped = 0;
};

void Reader::skip(const std::string& tensor, const std::string& reason) {
    if (skipped++ < names_shown) {
        report.skipped_names += (report.skipped_names.empty() ? "" : "; ") + tensor + " (" + reason + ")";
    }
    LOG_DEBUG("LoRA %s: %s is skipped: %s", file.path().c_str(), tensor.c_str(), reason.c_str());
}

std::vector<Module> Reader::modules_of(const Targets& targets) {
    std::map<std::string, size_t> indices;
    std::vector<Module> found;
    for (const std::string& name : file.names()) {
        const auto named = role_of(name);
        if (wanted.photo_maker && (!named || !(starts_with(name, "unet.") || contains(name, "lora_weights")))) {
            continue;  // PhotoMaker's file holds its encoder, too
        }
        ++report.tensors;
        if (!named) {
            skip(name, "no change that is known");
            continue;
        }
        const auto [at, is_new] = indices.emplace(named->module, found.size());
        if (is_new) {
            found.push_back({named->module, {}, targets.find(named->module)});
        }
        const std::vector<int64_t> shape = file.shape(name);
        if (found[at->second].target == nullptr) {
            skip(name, "the model has no such module");
        } else if (std::find(shape.begin(), shape.end(), 0) != shape.end()) {
            skip(name, "it is empty");
        } else {
            found[at->second].tensors.emplace_back(named->role, name);
        }
    }
    return found;
}

std::string Reader::add_weight(const Module& module, Change change, std::vector<Change>& changes) {
    const Form& form = change.form;
    const auto found = parts.tensors.find(module.target->weight);
    if (found == parts.tensors.end()) {
        return "the model has no such weight";
    }
    change.tensor = found->second;
    Rows size = rows_of(change.tensor);
    if (form.kind == Kind::difference && form.rows * form.columns == size.rows * size.columns &&
        module.target->part == Part::whole) {
        change.form.rows = size.rows;
        change.form.columns = size.columns;
    }
    const std::string shapes = "its " + shape_text({form.rows, form.columns}) + " do not fit the model's " +
                               shape_text({size.rows, size.columns});
    const int64_t columns = change.target.on_output ? size.rows : size.columns;
    const auto row = part_row(*module.target, size.rows, size.columns, form.rows);
    if (!row || columns != form.columns || size.rows * size.columns != ggml_nelements(change.tensor)) {
        return shapes;
    }
    change.row = *row;
    for (const Role role : {Role::dora, Role::magnitude}) {
        const auto norms = change.factors.find(role);
        if (norms == change.factors.end()) {
            continue;
        }
        const int64_t count = ggml_nelements(norms->second.tensor);
        if (count != form.rows && (count != size.channels || norms->second.first() != 1)) {
            return "its norms do not fit";
        }
    }
    if (module.target->halves_swapped && size.rows == 2 * size.columns) {
        bool swapped = false;
        for (const auto& [role, factor] : change.factors) {
            const bool by_rows = role == Role::up || role == Role::diff || role == Role::magnitude ||
                                 (role == Role::dora && factor.first() > 1);
            if (by_rows) {
                swap_halves(factor);
                swapped = true;
            }
        }
        if (!swapped) {
            return "the model has its rows in another order";
        }
    }
    changes.push_back(std::move(change));
    return "";
}

std::string Reader::add_bias(const Module& module, Change change, std::vector<Change>& changes) {
    const auto added = change.factors.count(Role::diff_bias) != 0 ? change.factors.find(Role::diff_bias)
                                                                  : change.factors.find(Role::up_bias);
    const auto found = parts.tensors.find(module.target->bias);
    if (module.target->bias.empty() || found == parts.tensors.end()) {
        return "the layer has no bias";
    }
    const Factor factor = added->second;
    const int64_t rows = ggml_nelements(found->second);
    const auto weight = parts.tensors.find(module.target->weight);
    const int64_t columns = weight == parts.tensors.end() ? 0 : rows_of(weight->second).columns;
    const auto row = part_row(*module.target, rows, columns, ggml_nelements(factor.tensor));
    if (!row) {
        return "it does not fit the bias";
    }
    if (module.target->halves_swapped && rows == 2 * columns) {
        swap_halves(factor);
    }
    // The bias of lora_B is scaled as its product is.
    const float scale = added->first == Role::up_bias ? change.form.scale : 1.0f;
    change.factors = {{Role::diff, {factor.tensor, factor.dims}}};
    change.form = {Kind::difference, ggml_nelements(factor.tensor), 1, scale, ""};
    change.tensor = found->second;
    change.of_bias = true;
    change.row = *row;
    changes.push_back(std::move(change));
    return "";
}

void Reader::add_module(const Module& module, std::vector<Change>& changes) {
    Change change;
    for (const auto& [role, name] : module.tensors) {
        change.factors[role] = file.factor(name);
    }
    change.form = form_of(change.factors);
    if (change.factors.count(Role::alpha) == 0 && change.factors.count(Role::scale) == 0 &&
        change.form.kind == Kind::low_rank) {
        change.form.scale = file.scale(module.name, change.factors.at(Role::down).first());
    }
    change.target = *module.target;
    change.strength = wanted.strength;
    change.lora = lora;
    std::string weight_problem = change.form.problem;
    if (change.form.kind != Kind::none) {
        weight_problem = add_weight(module, change, changes);
    }
    // What maps the layer's output maps its bias as well.
    if (weight_problem.empty() && change.target.on_output && !change.target.bias.empty()) {
        Change of_bias = changes.back();
        of_bias.tensor = parts.tensors.at(change.target.bias);
        of_bias.of_bias = true;
        changes.push_back(std::move(of_bias));
    }
    for (const auto& [role, name] : module.tensors) {
        std::string problem = weight_problem;
        if (role == Role::diff_bias || role == Role::up_bias) {
            problem = add_bias(module, change, changes);
        }
        if (problem.empty()) {
            ++report.applied;
        } else {
            skip(name, problem);
        }
    }
}

std::vector<Change> Reader::read(const Targets& targets) {
    const std::vector<Module> found = modules_of(targets);
    std::vector<std::string> needed;
    for (const Module& module : found) {
        for (const auto& entry : module.tensors) {
            needed.push_back(entry.second);
        }
    }
    file.load(needed, parts.n_threads);
    std::vector<Change> changes;
    for (const Module& module : found) {
        if (!module.tensors.empty()) {
            add_module(module, changes);
        }
    }
    return changes;
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
    if (wanted == state->applied && merge == state->merged) {
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
    merger.restore();

    // A run that ends here leaves the model as it was loaded.
    const auto undo = [&] {
        state->adapters.clear();
        made.clear();
        if (!guard([&] { merger.restore(); return true; })) {
            context_broken();
        }
    };
    OnException undo_all(undo);
    std::vector<std::unique_ptr<Reader>> readers;
    std::vector<Change> changes;
    made.resize(wanted.size());
    std::unique_ptr<Targets> targets[2];
    for (size_t i = 0; i < wanted.size(); ++i) {
        made[i].path = wanted[i].file.path;
        made[i].strength = wanted[i].strength;
        made[i].merged = merge;
        if (wanted[i].strength == 0.0f) {
            continue;
        }
        auto& names = targets[wanted[i].high_noise ? 1 : 0];
        if (names == nullptr) {
            names = std::make_unique<Targets>(parts.tensors, wanted[i].high_noise);
        }
        readers.push_back(std::make_unique<Reader>(wanted[i], parts, i, made[i]));
        std::vector<Change> read = readers.back()->read(*names);
        if (read.empty()) {
            throw std::runtime_error("LoRA: nothing of " + wanted[i].file.path + " fits this model: " +
                                     made_for(readers.back()->file));
        }
        changes.insert(changes.end(), std::make_move_iterator(read.begin()), std::make_move_iterator(read.end()));
    }

    std::map<ggml_tensor*, std::vector<const Change*>> merges;
    std::map<std::string, std::vector<const Change*>> attached;
    for (const Change& change : changes) {
        // The layer's output holds its bias already where a change is applied to the output.
        if (!merge && change.of_bias && change.target.on_output) {
            continue;
        }
        if (merge || !applies_at_runtime(change)) {
            merges[change.tensor].push_back(&change);
        } else {
            attached[module_of(change.target.weight)].push_back(&change);
        }
    }

    CancelPoll poll;
    std::map<std::string, std::vector<Norms>> norms;
    for (const auto& [module, ours] : attached) {
        for (const Change* change : ours) {
            if (poll.cancelled()) {
                undo();
                return;
            }
            norms[module].push_back(merger.norms(*change));
        }
    }
    for (const auto& [tensor, ours] : merges) {
        if (poll.cancelled()) {
            undo();
            return;
        }
        merger.merge(tensor, ours);
    }
    const auto is_half = [&](const ggml_tensor* tensor) {
        return std::any_of(readers.begin(), readers.end(),
                           [&](const std::unique_ptr<Reader>& reader) { return reader->file.is_half(tensor); });
    };
    for (const auto& [module, ours] : attached) {
        state->adapters[module] =
            std::make_shared<RuntimeLoras>(parts.backend, module.c_str(), ours, norms[module], is_half);
    }
    state->applied = std::move(wanted);
    state->merged = merge;
    for (const LoraReport& report : made) {
        LOG_INFO("LoRA %s: %" PRIu64 " of %" PRIu64 " tensors applied%s%s", report.path.c_str(), report.applied,
                 report.tensors, report.skipped_names.empty() ? "" : "; skipped: ", report.skipped_names.c_str());
    }
    if (!made.empty()) {
        LOG_INFO("LoRAs applied in %.2f s", static_cast<double>(ggml_time_ms() - start) / 1000.0);
    }
}

}  // namespace sdcpp

int sdcpp_lora_count(const sd_ctx_t* ctx) {
    return ctx == nullptr ? 0 : static_cast<int>(sdcpp::loras_of(ctx).reports().size());
}

bool sdcpp_lora_get(const sd_ctx_t* ctx, int index, sdcpp_lora_t* lora) {
    if (ctx == nullptr || lora == nullptr || index < 0 || index >= sdcpp_lora_count(ctx)) {
        return false;
    }
    const sdcpp::LoraReport& report = sdcpp::loras_of(ctx).reports()[static_cast<size_t>(index)];
    *lora = {report.path.c_str(), report.strength,         report.merged,
             report.tensors,      report.applied, report.tensors - report.applied, report.skipped_names.c_str()};
    return true;
}
