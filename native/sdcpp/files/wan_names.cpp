// The names on both sides are those of https://github.com/huggingface/diffusers (transformer_wan.py,
// autoencoder_kl_wan.py) and https://github.com/Wan-Video (model.py, vae2_1.py, vae2_2.py).
#include "sdcpp/files/wan_names.h"

#include <cstdlib>

namespace {

struct Rename {
    const char* from;
    const char* to;
};

constexpr Rename of_transformer[] = {
    {"condition_embedder.time_embedder.linear_1.", "time_embedding.0."},
    {"condition_embedder.time_embedder.linear_2.", "time_embedding.2."},
    {"condition_embedder.time_proj.", "time_projection.1."},
    {"condition_embedder.text_embedder.linear_1.", "text_embedding.0."},
    {"condition_embedder.text_embedder.linear_2.", "text_embedding.2."},
    {"condition_embedder.image_embedder.norm1.", "img_emb.proj.0."},
    {"condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."},
    {"condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."},
    {"condition_embedder.image_embedder.norm2.", "img_emb.proj.4."},
    {"condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"},
    {"proj_out.", "head.head."},
    {"scale_shift_table", "head.modulation"},
};
constexpr Rename of_block[] = {
    {"attn1.to_q.", "self_attn.q."},
    {"attn1.to_k.", "self_attn.k."},
    {"attn1.to_v.", "self_attn.v."},
    {"attn1.to_out.0.", "self_attn.o."},
    {"attn1.", "self_attn."},
    {"attn2.to_q.", "cross_attn.q."},
    {"attn2.to_k.", "cross_attn.k."},
    {"attn2.to_v.", "cross_attn.v."},
    {"attn2.to_out.0.", "cross_attn.o."},
    {"attn2.add_k_proj.", "cross_attn.k_img."},
    {"attn2.add_v_proj.", "cross_attn.v_img."},
    {"attn2.norm_added_k.", "cross_attn.norm_k_img."},
    {"attn2.", "cross_attn."},
    {"norm2.", "norm3."},
    {"ffn.net.0.proj.", "ffn.0."},
    {"ffn.net.2.", "ffn.2."},
    {"scale_shift_table", "modulation"},
    {"proj_in.", "before_proj."},
    {"proj_out.", "after_proj."},
};
constexpr Rename of_coder[] = {
    {"quant_conv.", "conv1."},
    {"post_quant_conv.", "conv2."},
};
constexpr Rename of_half[] = {
    {"conv_in.", "conv1."},
    {"mid_block.resnets.0.", "middle.0."},
    {"mid_block.attentions.0.", "middle.1."},
    {"mid_block.resnets.1.", "middle.2."},
    {"norm_out.", "head.0."},
    {"conv_out.", "head.2."},
};
constexpr Rename of_residual[] = {
    {"norm1.", "residual.0."}, {"conv1.", "residual.2."},       {"norm2.", "residual.3."},
    {"conv2.", "residual.6."}, {"conv_shortcut.", "shortcut."},
};

bool begins(const std::string& text, const std::string& start) {
    return text.compare(0, start.size(), start) == 0;
}

template <size_t N>
std::string renamed(const std::string& name, const Rename (&table)[N]) {
    for (const auto& [from, to] : table) {
        if (begins(name, from)) {
            return to + name.substr(std::string(from).size());
        }
    }
    return name;
}

// Takes "7." from the beginning of a text; -1 where there is no number.
int take_number(std::string& text) {
    const size_t dot = text.find('.');
    if (dot == std::string::npos || dot == 0 || text.find_first_not_of("0123456789") != dot) {
        return -1;
    }
    const int number = std::atoi(text.c_str());
    text.erase(0, dot + 1);
    return number;
}

std::string transformer_name(const std::string& name) {
    for (const std::string blocks : {"blocks.", "vace_blocks."}) {
        if (begins(name, blocks)) {
            const size_t end = name.find('.', blocks.size());
            return end == std::string::npos ? name : name.substr(0, end + 1) + renamed(name.substr(end + 1), of_block);
        }
    }
    return renamed(name, of_transformer);
}

// nested: Wan 2.2's levels hold their blocks; those of 2.1 lie one after the other.
std::string coder_name(const std::string& name, bool nested) {
    const bool encodes = begins(name, "encoder.");
    if (!encodes && !begins(name, "decoder.")) {
        return renamed(name, of_coder);
    }
    const std::string half = name.substr(0, 8);
    std::string rest = renamed(name.substr(8), of_half);
    if (begins(rest, "middle.")) {
        return half + rest.substr(0, 9) + renamed(rest.substr(9), of_residual);
    }
    const std::string levels = encodes ? "down_blocks." : "up_blocks.";
    if (!begins(rest, levels)) {
        return half + rest;
    }
    rest.erase(0, levels.size());
    const int level = take_number(rest);
    int block = -1;  // within its level; of a list without levels none
    constexpr int after_encoders = 2;
    constexpr int after_decoders = 3;
    for (const std::string resampler : {"downsampler.", "upsampler.", "upsamplers.0."}) {
        if (begins(rest, resampler)) {
            rest.erase(0, resampler.size());
            block = encodes ? after_encoders : after_decoders;
        }
    }
    if (begins(rest, "resnets.")) {
        rest.erase(0, std::string("resnets.").size());
        block = take_number(rest);
    }
    const std::string list = encodes ? "downsamples." : "upsamples.";
    const std::string inner = renamed(rest, of_residual);
    if (nested) {
        return half + list + std::to_string(level) + "." + list + std::to_string(block) + "." + inner;
    }
    const int flat = block < 0 ? level : level * (after_decoders + 1) + block;
    return half + list + std::to_string(flat) + "." + inner;
}

std::string coder_name_2_1(const std::string& name) {
    return coder_name(name, false);
}

std::string coder_name_2_2(const std::string& name) {
    return coder_name(name, true);
}

}  // namespace

namespace sdcpp::files {

Renaming wan_renaming(const Has& has) {
    if (has("condition_embedder.time_embedder.linear_1.weight") && has("blocks.0.attn2.norm_k.weight")) {
        return transformer_name;
    }
    if (!has("decoder.mid_block.resnets.0.norm1.gamma")) {
        return nullptr;
    }
    return has("decoder.up_blocks.0.upsampler.resample.1.weight") ? coder_name_2_2 : coder_name_2_1;
}

}  // namespace sdcpp::files
