#include "sdcpp/lora/roles.h"

#include <utility>
#include <vector>

#include "util.h"

namespace {

using sdcpp::Role;

// A longer suffix stands before one that it ends with.
const std::vector<std::pair<std::string, Role>> suffixes = {
    {".lora_linear_layer.down.weight", Role::down},
    {".lora_linear_layer.up.weight", Role::up},
    {".lora_down.weight", Role::down},
    {".lora_up.weight", Role::up},
    {".lora_mid.weight", Role::mid},
    {".lora.down.weight", Role::down},
    {".lora.up.weight", Role::up},
    {".lora.mid.weight", Role::mid},
    {"_lora.down.weight", Role::down},
    {"_lora.up.weight", Role::up},
    {".lora_A.weight", Role::down},
    {".lora_B.weight", Role::up},
    {".lora_A", Role::down},
    {".lora_B", Role::up},
    {".down.weight", Role::down},  // of xlabs: "...processor.qkv_lora1.down.weight"
    {".up.weight", Role::up},
    {".lora_B.bias", Role::up_bias},
    {".lora_up.bias", Role::up_bias},
    {".lora_linear_layer.alpha", Role::alpha},
    {".alpha", Role::alpha},
    {".dora_scale", Role::dora},
    {".lora_magnitude_vector.weight", Role::magnitude},
    {".lora_magnitude_vector", Role::magnitude},
    {".scale", Role::scale},
    {".diff", Role::diff},
    {".w_norm", Role::diff},
    {".diff_b", Role::diff_bias},
    {".b_norm", Role::diff_bias},
    {".hada_w1_a", Role::hada_1a},
    {".hada_w1_b", Role::hada_1b},
    {".hada_t1", Role::hada_1t},
    {".hada_w2_a", Role::hada_2a},
    {".hada_w2_b", Role::hada_2b},
    {".hada_t2", Role::hada_2t},
    {".lokr_w1", Role::kron_1},
    {".lokr_w1_a", Role::kron_1a},
    {".lokr_w1_b", Role::kron_1b},
    {".lokr_w2", Role::kron_2},
    {".lokr_w2_a", Role::kron_2a},
    {".lokr_w2_b", Role::kron_2b},
    {".lokr_t2", Role::kron_2t},
};

// Takes PEFT's name of an adapter out: "x.lora_A.default.weight", "x.lokr_w1.default".
std::string without_adapter(std::string name) {
    const std::string adapter = ".default";
    const size_t at = name.rfind(adapter);
    const size_t end = at + adapter.size();
    if (at != std::string::npos && (end == name.size() || name[end] == '.')) {
        name.erase(at, adapter.size());
    }
    return name;
}

}  // namespace

std::optional<sdcpp::Named> sdcpp::role_of(const std::string& tensor) {
    const std::string name = without_adapter(tensor);
    for (const auto& [suffix, role] : suffixes) {
        if (name.size() > suffix.size() && ends_with(name, suffix)) {
            return Named{name.substr(0, name.size() - suffix.size()), role};
        }
    }
    return std::nullopt;
}
