#include "sdcpp/lora/reader.h"

#include <algorithm>
#include <map>

#include "sdcpp/lora/made_for.h"
#include "util.h"

namespace {

using namespace sdcpp;

// Names of skipped tensors that a report gives.
constexpr size_t names_shown = 5;

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

}  // namespace

namespace sdcpp {

void Reader::skip(const std::string& tensor, const std::string& reason) {
    if (skipped == 0) {
        first_skipped = tensor + ": " + reason;
    }
    if (skipped++ < names_shown) {
        report.skipped_names += (report.skipped_names.empty() ? "" : "; ") + tensor + " (" + reason + ")";
    }
    LOG_DEBUG("LoRA %s: %s is skipped: %s", file.path().c_str(), tensor.c_str(), reason.c_str());
}

std::vector<Reader::Module> Reader::modules_of(const Targets& targets) {
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
    change.strength = of_text_encoder(module.target->weight) ? wanted.te_strength : wanted.strength;
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

std::string Reader::nothing_fits() {
    return "LoRA: nothing of " + file.path() + " fits this model: " + made_for(file) +
           (first_skipped.empty() ? "" : " (" + first_skipped + ")");
}

}  // namespace sdcpp
