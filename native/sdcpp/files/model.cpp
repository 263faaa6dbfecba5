// What the engine's loader asks for.
#include "sdcpp/files/model.h"

#include <algorithm>
#include <deque>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "model_io/tensor_storage.h"
#include "sdcpp/files/listing.h"
#include "sdcpp/files/parts.h"
#include "sdcpp/files/wan_names.h"
#include "util.h"

namespace sdcpp::files {

namespace {

struct Listed {
    Tensor tensor;
    size_t part;
};

// Names that fp8 checkpoints give to a weight's scales: ComfyUI's older and newer one, and that of transformers.
constexpr std::string_view scale_endings[] = {"scale_weight", "weight_scale", "weight_scale_inv"};
// And to what only says that there are some, or serves arithmetic in fp8.
constexpr std::string_view mark_endings[] = {"scaled_fp8", "scale_input", "input_scale", "comfy_quant"};

bool ends_in(const std::string& name, std::string_view part) {
    return name.size() >= part.size() && name.compare(name.size() - part.size(), part.size(), part) == 0 &&
           (name.size() == part.size() || name[name.size() - part.size() - 1] == '.');
}

bool is_mark(const std::string& name) {
    return std::any_of(std::begin(mark_endings), std::end(mark_endings),
                       [&](std::string_view ending) { return ends_in(name, ending); });
}

// Returns the name of the weight that a tensor scales, or "".
std::string scaled_by(const std::string& name) {
    for (const auto ending : scale_endings) {
        if (ends_in(name, ending)) {
            return name.substr(0, name.size() - ending.size()) + "weight";
        }
    }
    return "";
}

ReadAt reader(Input& input) {
    return [&input](uint64_t position, void* to, size_t count) { input.read(position, to, count); };
}

TensorStorage storage_of(const Tensor& tensor, size_t file) {
    TensorStorage storage;
    storage.name = tensor.name;
    storage.file_index = file;
    storage.offset = tensor.offset;
    std::vector<int64_t> shape = tensor.shape;
    // The engine has 4 dimensions: the two slowest ones of 5 become one.
    if (shape.size() > engine_dimensions) {
        shape[1] *= shape[0];
        shape.erase(shape.begin());
    }
    storage.n_dims = std::max(1, static_cast<int>(shape.size()));
    std::copy(shape.rbegin(), shape.rend(), storage.ne);
    if (tensor.dtype == nullptr) {
        storage.type = tensor.block;
        while (storage.n_dims > 1 && storage.ne[storage.n_dims - 1] == 1) {
            --storage.n_dims;
        }
    } else {
        const std::string_view dtype = tensor.dtype->name;
        storage.type = tensor.dtype->type;
        storage.is_f8_e4m3 = dtype == "F8_E4M3";
        storage.is_f8_e5m2 = dtype == "F8_E5M2";
        storage.is_f64 = dtype == "F64";
        storage.is_i64 = dtype == "I64";
    }
    if (!tensor.strides.empty() || tensor.packed_bytes > 0) {
        storage.reading = std::make_shared<Reading>(Reading{tensor, {}});
    }
    return storage;
}

// A weight that is read with its scales is of the engine's type at once.
void apply(TensorStorage& storage, const Tensor& tensor, Scales scales) {
    storage.reading = std::make_shared<Reading>(Reading{tensor, std::move(scales)});
    storage.is_f8_e4m3 = storage.is_f8_e5m2 = storage.is_f64 = false;
    if (tensor.dtype->type == GGML_TYPE_COUNT) {
        storage.type = GGML_TYPE_F16;
    }
}

[[noreturn]] void fail(const std::string& path, const FileError& error) {
    throw FileError(path + " " + error.what());
}

std::deque<Listed> list_parts(const std::vector<Part>& files, std::unordered_set<std::string>& left_out) {
    std::deque<Listed> listed;
    // Shards of one network have one prefix; only together they tell what it is.
    std::unordered_set<std::string> names;
    const auto rename = [&](size_t from) {
        const Renaming renaming = wan_renaming([&](const char* name) { return names.count(name) != 0; });
        for (size_t i = from; renaming != nullptr && i < listed.size(); ++i) {
            listed[i].tensor.name = renaming(listed[i].tensor.name);
        }
        names.clear();
    };
    size_t network = 0;
    for (size_t part = 0; part < files.size(); ++part) {
        if (part > 0 && files[part].prefix != files[part - 1].prefix) {
            rename(network);
            network = listed.size();
        }
        Listing listing;
        try {
            listing = list(files[part].path);
            check_part(files[part], listing);
        } catch (const FileError& error) {
            fail(files[part].path, error);
        }
        for (auto& tensor : listing.tensors) {
            names.insert(tensor.name);
            listed.push_back({std::move(tensor), part});
        }
        left_out.insert(listing.left_out_names.begin(), listing.left_out_names.end());
        if (!listing.left_out.empty()) {
            LOG_INFO("%s: %zu tensors are of no use to the engine, such as %s", files[part].path.c_str(),
                     listing.left_out.size(), listing.left_out[0].c_str());
        }
    }
    rename(network);
    return listed;
}

}  // namespace

void read_model(const std::string& path, const std::string& prefix, std::vector<std::string>& paths,
                std::vector<TensorStorage>& tensors, Shapes* shapes) {
    std::vector<Part> files;
    try {
        files = parts(path, prefix);
    } catch (const FileError& error) {
        fail(path, error);
    }
    std::unordered_set<std::string> left_out;
    const auto listed = list_parts(files, left_out);
    std::unordered_map<std::string_view, size_t> by_name;
    for (size_t i = 0; i < listed.size(); ++i) {
        by_name[listed[i].tensor.name] = i;
    }
    // Which tensor scales which.
    std::unordered_map<size_t, size_t> scale_of;
    std::unordered_set<size_t> unused;
    for (size_t i = 0; i < listed.size(); ++i) {
        const std::string weight = scaled_by(listed[i].tensor.name);
        if (weight.empty()) {
            continue;
        }
        if (const auto found = by_name.find(weight); found != by_name.end()) {
            if (listed[found->second].tensor.dtype != nullptr) {
                scale_of[found->second] = i;
                unused.insert(i);
            }
        } else if (left_out.count(weight) != 0) {
            fail(files[listed[i].part].path,
                 FileError("tensor " + shown(weight) + " has scales and a type that this engine does not know"));
        }
    }
    const size_t first = paths.size();
    for (auto& file : files) {
        paths.push_back(file.path);
        // The engine knows a UNet with diffusers' names by another prefix than one with its own names.
        if (file.prefix == "model.diffusion_model." && by_name.count("down_blocks.0.resnets.0.conv1.weight") != 0) {
            file.prefix = "unet.";
        }
    }
    for (size_t i = 0; i < listed.size(); ++i) {
        const Tensor& tensor = listed[i].tensor;
        const auto scale = scale_of.find(i);
        const bool plain = tensor.dtype == nullptr || tensor.dtype->type != GGML_TYPE_COUNT;
        if (unused.count(i) != 0 || (!scale_of.empty() && is_mark(tensor.name)) ||
            (!plain && scale == scale_of.end() && !is_alpha(tensor))) {
            continue;
        }
        TensorStorage storage = storage_of(tensor, first + listed[i].part);
        if (is_alpha(tensor)) {
            // As it is, by the one factor 1.
            const uint64_t count = element_count(tensor);
            apply(storage, tensor, Scales{{1.0f}, 1, count, 1, count});
            storage.type = GGML_TYPE_F32;
        } else if (scale != scale_of.end()) {
            const Listed& factors = listed[scale->second];
            const std::string& file = files[factors.part].path;
            try {
                Input input(file);
                apply(storage, tensor, scales_of(tensor, factors.tensor, read_floats(factors.tensor, reader(input))));
            } catch (const FileError& error) {
                fail(file, error);
            }
        }
        const std::string& start = files[listed[i].part].prefix;
        if (storage.name.compare(0, start.size(), start) != 0) {
            storage.name = start + storage.name;
        }
        if (shapes != nullptr && (tensor.shape.empty() || tensor.shape.size() > engine_dimensions)) {
            (*shapes)[storage.name] = tensor.shape;
        }
        tensors.push_back(std::move(storage));
    }
}

}  // namespace sdcpp::files
