#include "sdcpp/conversion/convert.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <regex>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "model.h"
#include "name_conversion.h"
#include "sdcpp/api/run.h"
#include "sdcpp/conversion/stored_numbers.h"
#include "sdcpp/conversion/writer.h"
#include "sdcpp/files/model.h"
#include "sdcpp/files/values.h"
#include "sdcpp/values/refused.h"
#include "util.h"

// Of the engine's loader; no header declares it.
bool is_unused_tensor(const std::string& name);

namespace sdcpp {

namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<uint8_t>;

// Numbers of a tensor that one thread converts before it asks for more: as many as are read between two looks whether
// the run is cancelled.
constexpr int64_t values_at_once = 1 << 20;

struct Rule {
    std::string text;
    std::regex pattern;
    ggml_type type;
    bool used = false;
};

// A tensor, and what it becomes.
struct Step {
    TensorStorage storage;
    Entry entry;
};

std::vector<Rule> rules_of(const sdcpp_convert_params_t& params) {
    std::vector<Rule> rules;
    for (const auto& [pattern, type] :
         parse_tensor_type_rules(params.tensor_type_rules != nullptr ? params.tensor_type_rules : "")) {
        try {
            rules.push_back({pattern, std::regex(pattern), type});
        } catch (const std::regex_error&) {
            throw Refused("tensor_type_rules: '" + pattern + "' is no regular expression");
        }
    }
    return rules;
}

bool is_number(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 || ggml_is_quantized(type);
}

std::string type_text(const TensorStorage& tensor) {
    return tensor.is_f8_e4m3 || (tensor.reading && tensor.reading->tensor.dtype != nullptr &&
                                 !tensor.reading->scales.factors.empty())
               ? (tensor.reading ? tensor.reading->tensor.dtype->name : "F8_E4M3")
           : tensor.is_f8_e5m2 ? "F8_E5M2"
           : tensor.is_f64     ? "F64"
           : tensor.is_i64     ? "I64"
                               : ggml_type_name(tensor.type);
}

// Says what a tensor becomes, and why that is not what was asked for.
class Types {
public:
    explicit Types(const sdcpp_convert_params_t& params)
        : rules(rules_of(params)),
          asked(params.wtype == SD_TYPE_COUNT ? GGML_TYPE_COUNT : static_cast<ggml_type>(params.wtype)),
          safetensors(params.safetensors) {}

    ggml_type of(const TensorStorage& tensor, const std::string& name, std::string& reason) {
        const auto rule = std::find_if(rules.begin(), rules.end(),
                                       [&](const Rule& each) { return std::regex_search(name, each.pattern); });
        for (Rule& each : rules) {
            each.used = each.used || std::regex_search(name, each.pattern);
        }
        const ggml_type wanted = rule != rules.end() ? rule->type : asked;
        ggml_type type = tensor.type;
        if (wanted != GGML_TYPE_COUNT && wanted != type) {
            TensorStorage named = tensor;
            named.name = name;
            if (!is_number(type)) {
                reason = "whole numbers";
            } else if (rule == rules.end() && tensor.n_dims < 2) {
                reason = "one row alone";
            } else if (rule == rules.end() && wanted == GGML_TYPE_BF16 && tensor.n_dims > 2) {
                reason = "the engine convolves with f16";
                type = type == GGML_TYPE_F32 ? GGML_TYPE_F16 : type;
            } else if (rule == rules.end() && tensor.ne[0] % ggml_blck_size(wanted) == 0 &&
                       !loader.tensor_should_be_converted(named, wanted)) {
                reason = "the engine keeps it";
            } else if (tensor.ne[0] % ggml_blck_size(wanted) != 0) {
                reason = "rows of " + std::to_string(tensor.ne[0]) + " numbers are no multiple of " +
                         std::to_string(ggml_blck_size(wanted));
                // The engine computes with f16 where it cannot with the type that was asked for.
                type = type == GGML_TYPE_F32 && tensor.n_dims > 1 ? GGML_TYPE_F16 : type;
            } else {
                type = wanted;
            }
        }
        if (safetensors && !safetensors_has(type) && is_number(type)) {
            if (wanted == GGML_TYPE_COUNT || !safetensors_has(wanted)) {
                throw Refused("safetensors has no type " + std::string(ggml_type_name(type)) + " (tensor " +
                              files::shown(name) + "); write GGUF, or ask for weight_type f32, f16 or bf16");
            }
            type = wanted;
            reason.clear();
        }
        return type;
    }

    void check_rules(const std::string& first) const {
        for (const Rule& rule : rules) {
            if (!rule.used) {
                throw Refused("tensor_type_rules: '" + rule.text +
                              "' is in no name of a tensor of this model, such as '" + first + "'");
            }
        }
    }

private:
    std::vector<Rule> rules;
    const ggml_type asked;
    const bool safetensors;
    ModelLoader loader;
};

// Reads a tensor as the engine's loader does.
Bytes read(const TensorStorage& tensor, files::Input& input) {
    Bytes raw(static_cast<size_t>(tensor.nbytes_to_read()));
    const auto read_at = [&](uint64_t position, void* to, size_t count) {
        run_current()->poll_cancelled();
        input.read(position, to, count);
    };
    files::read_tensor(tensor, raw.data(), raw.size(), read_at);
    if (!is_stored_otherwise(tensor)) {
        return raw;
    }
    Bytes out(static_cast<size_t>(tensor.nbytes()));
    take_stored(tensor, raw.data(), out.data(), tensor.nelements());
    return out;
}

// Converts rows on several threads, while this one looks whether the run is cancelled.
Bytes convert(Bytes from, ggml_type from_type, const Entry& entry, int threads) {
    if (from_type == entry.type) {
        return from;
    }
    Bytes to(static_cast<size_t>(entry.bytes()));
    const size_t from_row = ggml_row_size(from_type, entry.columns);
    const size_t to_row = ggml_row_size(entry.type, entry.columns);
    const int64_t most = std::max<int64_t>(1, values_at_once / entry.columns);
    const int64_t pieces = (entry.rows + most - 1) / most;
    std::atomic<int64_t> next{0};
    std::atomic<int> working{0};
    std::atomic<bool> failed{false};
    const auto work = [&] {
        for (int64_t piece = next++; piece < pieces && !failed; piece = next++) {
            const int64_t row = piece * most;
            files::convert_rows(from.data() + static_cast<size_t>(row) * from_row, from_type,
                                to.data() + static_cast<size_t>(row) * to_row, entry.type,
                                std::min(most, entry.rows - row), entry.columns);
        }
    };
    if (pieces == 1) {
        work();
        return to;
    }
    std::vector<std::thread> workers;
    const auto join = [&] {
        for (auto& worker : workers) {
            worker.join();
        }
        workers.clear();
    };
    for (int64_t i = 0; i < std::min<int64_t>(threads, pieces); ++i) {
        ++working;
        const auto guarded = guard_worker(failed, work);
        workers.emplace_back([&working, guarded] {
            guarded();
            --working;
        });
    }
    while (working > 0) {
        load_wait(failed);
    }
    join();
    stop_if_cancelled();
    if (failed) {
        throw std::runtime_error("target: the numbers of tensor " + files::shown(entry.name) + " cannot be converted");
    }
    return to;
}

uint64_t room_for(const std::string& path) {
    std::error_code error;
    const auto folder = std::filesystem::u8path(path).parent_path();
    const auto space = std::filesystem::space(folder.empty() ? std::filesystem::path(".") : folder, error);
    return error ? UINT64_MAX : space.available;
}

}  // namespace

std::vector<Converted> convert_model(const sdcpp_convert_params_t& params) {
    std::vector<std::string> paths;
    std::vector<TensorStorage> tensors;
    files::Shapes shapes;
    files::read_model(params.source, "", paths, tensors, &shapes);
    SDVersion version = VERSION_COUNT;
    if (params.convert_names) {
        ModelLoader loader;
        loader.init_from_file(params.source);
        version = loader.get_sd_version();
    }
    std::vector<Converted> report;
    std::vector<Step> steps;
    std::vector<Entry> entries;
    std::unordered_set<std::string> names;
    Types types(params);
    for (auto& tensor : tensors) {
        if (is_unused_tensor(tensor.name)) {
            report.push_back({tensor.name, type_text(tensor), "", "the engine never reads it", 0});
            continue;
        }
        Entry entry;
        entry.name = params.convert_names ? convert_tensor_name(tensor.name, version) : tensor.name;
        if (!names.insert(entry.name).second) {
            throw Refused("two tensors would have the name " + files::shown(entry.name) +
                          "; convert without convert_names");
        }
        std::string reason;
        entry.type = types.of(tensor, entry.name, reason);
        entry.columns = tensor.ne[0];
        entry.rows = tensor.nelements() / entry.columns;
        const auto whole = shapes.find(tensor.name);
        for (int i = tensor.n_dims - 1; i >= 0; --i) {
            entry.shape.push_back(tensor.ne[i]);
        }
        if (whole != shapes.end()) {
            entry.shape = whole->second;
        }
        report.push_back({entry.name, type_text(tensor), ggml_type_name(entry.type), reason, entry.bytes()});
        entries.push_back(entry);
        steps.push_back({std::move(tensor), std::move(entry)});
    }
    if (steps.empty()) {
        throw files::FileError(std::string(params.source) + " holds no tensors that the engine can use");
    }
    types.check_rules(entries[0].name);
    Texts metadata;
    for (int i = 0; i < params.metadata_count; ++i) {
        metadata.emplace_back(params.metadata[i].key, params.metadata[i].value);
    }
    const auto writer = params.safetensors
                            ? safetensors_writer(params.target, entries, metadata)
                            : gguf_writer(params.target, entries, metadata, params.source_is_gguf ? paths[0] : "");
    if (writer->size() > room_for(params.target)) {
        throw std::runtime_error("target: it takes " + std::to_string(writer->size() >> 20) +
                                 " MiB, and its disk has less left");
    }
    writer->begin();
    const int threads = params.n_threads > 0 ? params.n_threads : sd_get_num_physical_cores();
    const int all = static_cast<int>(steps.size());
    int done = 0;
    auto start = Clock::now();
    std::unique_ptr<files::Input> input;
    size_t opened = 0;
    phase_begin("converting");
    pretty_progress(0, all, 0.0f);
    for (const Step& step : steps) {
        if (input == nullptr || opened != step.storage.file_index) {
            opened = step.storage.file_index;
            input = std::make_unique<files::Input>(paths[opened]);
        }
        const Bytes bytes = convert(read(step.storage, *input), step.storage.type, step.entry, threads);
        writer->write(bytes.data(), bytes.size());
        const auto now = Clock::now();
        pretty_progress(++done, all, std::chrono::duration<float>(now - std::exchange(start, now)).count());
        run_current()->poll_cancelled();
        stop_if_cancelled();
    }
    writer->end();
    return report;
}

}  // namespace sdcpp
