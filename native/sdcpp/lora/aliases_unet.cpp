// Source of the names: diffusers' UNet2DConditionModel and AutoencoderKL beside ldm's openaimodel and autoencoder.
#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "sdcpp/lora/aliases.h"
#include "util.h"

namespace {

using Names = std::vector<std::pair<std::string, std::string>>;

// Returns the part of a path from an index on: parts("a.b.c")[1:] is "b.c".
std::string rest_of(const std::vector<std::string>& parts, size_t first) {
    std::string text;
    for (size_t i = first; i < parts.size(); ++i) {
        text += (i == first ? "" : ".") + parts[i];
    }
    return text;
}

const std::string* find(const Names& names, const std::string& name) {
    for (const auto& [from, to] : names) {
        if (from == name) {
            return &to;
        }
    }
    return nullptr;
}

const Names outer = {
    {"time_embed.0", "time_embedding.linear_1"},
    {"time_embed.2", "time_embedding.linear_2"},
    {"label_emb.0.0", "add_embedding.linear_1"},
    {"label_emb.0.2", "add_embedding.linear_2"},
    {"input_blocks.0.0", "conv_in"},
    {"out.0", "conv_norm_out"},
    {"out.2", "conv_out"},
};

const Names residual = {
    {"in_layers.0", "norm1"},  {"in_layers.2", "conv1"},  {"emb_layers.1", "time_emb_proj"},
    {"out_layers.0", "norm2"}, {"out_layers.3", "conv2"}, {"skip_connection", "conv_shortcut"},
};

// Emits the name of what lies inside of a block's residual network or transformer.
void emit_inner(const std::string& block, bool transformer, const std::string& number, const std::string& inner,
                const sdcpp::Emit& emit) {
    if (!transformer) {
        if (const std::string* name = find(residual, inner)) {
            emit(block + ".resnets." + number + "." + *name, {});
        }
        return;
    }
    const std::string name = block + ".attentions." + number + "." + inner;
    emit(name, {});
    if (ends_with(name, ".to_out.0")) {
        emit(name.substr(0, name.size() - 2), {});  // of processors: "to_out_lora"
    }
}

}  // namespace

int sdcpp::layer_number(const std::string& text) {
    constexpr size_t most_digits = 6;
    const size_t end = std::min(text.find('.'), text.size());
    if (end == 0 || end > most_digits || text.find_first_not_of("0123456789") < end) {
        return -1;
    }
    return std::atoi(text.substr(0, end).c_str());
}

void sdcpp::unet_aliases(const std::string& module, const Emit& emit) {
    if (const std::string* name = find(outer, module)) {
        emit(*name, {});
        return;
    }
    const std::vector<std::string> parts = split_string(module, '.');
    if (ends_with(module, ".to_out.0")) {
        emit(module.substr(0, module.size() - 2), {});
    }
    if (parts.size() >= 3 && parts[0] == "middle_block") {
        const bool transformer = parts[1] == "1";
        emit_inner("mid_block", transformer, parts[1] == "2" ? "1" : "0", rest_of(parts, 2), emit);
        return;
    }
    if (parts.size() < 4 || (parts[0] != "input_blocks" && parts[0] != "output_blocks")) {
        return;
    }
    const bool down = parts[0] == "input_blocks";
    // Three blocks to a level; the first input block is a convolution.
    const int index = layer_number(parts[1]) - (down ? 1 : 0);
    if (index < 0) {
        return;
    }
    const std::string block = (down ? "down_blocks." : "up_blocks.") + std::to_string(index / 3);
    if (parts[3] == "op") {
        emit(block + ".downsamplers.0.conv", {});
    } else if (parts[3] == "conv") {
        emit(block + ".upsamplers.0.conv", {});
    } else {
        emit_inner(block, parts[2] != "0", std::to_string(index % 3), rest_of(parts, 3), emit);
    }
}

void sdcpp::vae_aliases(const std::string& module, int levels, const Emit& emit) {
    const std::vector<std::string> parts = split_string(module, '.');
    if (parts.size() < 2 || (parts[0] != "encoder" && parts[0] != "decoder")) {
        return;
    }
    const std::string& side = parts[0];
    if (parts[1] == "norm_out") {
        emit(side + ".conv_norm_out", {});
    } else if (parts[1] == "mid" && parts.size() >= 4) {
        const std::string inner = rest_of(parts, 3);
        if (parts[2] != "attn_1") {
            const std::string name = inner == "nin_shortcut" ? "conv_shortcut" : inner;
            emit(side + ".mid_block.resnets." + (parts[2] == "block_1" ? "0." : "1.") + name, {});
            return;
        }
        const Names attention = {
            {"norm", "group_norm"}, {"q", "to_q"}, {"k", "to_k"}, {"v", "to_v"}, {"proj_out", "to_out.0"}};
        const Names older = {{"q", "query"}, {"k", "key"}, {"v", "value"}, {"proj_out", "proj_attn"}};
        for (const Names* names : {&attention, &older}) {
            if (const std::string* name = find(*names, inner)) {
                emit(side + ".mid_block.attentions.0." + *name, {});
            }
        }
    } else if (parts.size() >= 4 && (parts[1] == "up" || parts[1] == "down")) {
        const bool up = parts[1] == "up";
        const int number = layer_number(parts[2]);
        const int level = up ? levels - 1 - number : number;
        if (number < 0 || level < 0) {
            return;
        }
        const std::string block = side + (up ? ".up_blocks." : ".down_blocks.") + std::to_string(level);
        if (parts[3] == "block" && parts.size() >= 6) {
            const std::string name = parts[5] == "nin_shortcut" ? "conv_shortcut" : rest_of(parts, 5);
            emit(block + ".resnets." + parts[4] + "." + name, {});
        } else if (parts[3] == "upsample") {
            emit(block + ".upsamplers.0.conv", {});
        } else if (parts[3] == "downsample") {
            emit(block + ".downsamplers.0.conv", {});
        }
    }
}
