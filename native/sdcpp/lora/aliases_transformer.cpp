// Source of the names: diffusers' transformers (SD3Transformer2DModel, FluxTransformer2DModel, Flux2Transformer2DModel,
// ZImageTransformer2DModel, WanTransformer3DModel) and xlabs' x-flux beside the models' own releases.
#include <algorithm>
#include <utility>
#include <vector>

#include "sdcpp/lora/aliases.h"
#include "util.h"

namespace {

using sdcpp::Alias;
using sdcpp::Emit;
using sdcpp::Fused;
using sdcpp::Part;

struct Row {
    std::string ours;
    std::string theirs;
    Alias alias;
};

// Blocks that are numbered in both names.
struct Blocks {
    std::string ours;    // "double_blocks."
    std::string theirs;  // "transformer_blocks."
    std::vector<Row> rows;
};

constexpr Alias plain = {};
constexpr Alias swapped = {Part::whole, Fused::none, true, false};
constexpr Alias on_output = {Part::whole, Fused::none, false, true};

constexpr Alias part(Part which, Fused fused) {
    return {which, fused, false, false};
}

constexpr Alias query = part(Part::query, Fused::qkv);
constexpr Alias key = part(Part::key, Fused::qkv);
constexpr Alias value = part(Part::value, Fused::qkv);

const std::vector<Blocks> block_names = {
    {"joint_blocks.",
     "transformer_blocks.",
     {
         {"x_block.adaLN_modulation.1", "norm1.linear", plain},
         {"context_block.adaLN_modulation.1", "norm1_context.linear", swapped},
         {"x_block.attn.qkv", "attn.to_q", query},
         {"x_block.attn.qkv", "attn.to_k", key},
         {"x_block.attn.qkv", "attn.to_v", value},
         {"context_block.attn.qkv", "attn.add_q_proj", query},
         {"context_block.attn.qkv", "attn.add_k_proj", key},
         {"context_block.attn.qkv", "attn.add_v_proj", value},
         {"x_block.attn2.qkv", "attn2.to_q", query},
         {"x_block.attn2.qkv", "attn2.to_k", key},
         {"x_block.attn2.qkv", "attn2.to_v", value},
         {"x_block.attn.ln_q", "attn.norm_q", plain},
         {"x_block.attn.ln_k", "attn.norm_k", plain},
         {"context_block.attn.ln_q", "attn.norm_added_q", plain},
         {"context_block.attn.ln_k", "attn.norm_added_k", plain},
         {"x_block.attn2.ln_q", "attn2.norm_q", plain},
         {"x_block.attn2.ln_k", "attn2.norm_k", plain},
         {"x_block.attn.proj", "attn.to_out.0", plain},
         {"context_block.attn.proj", "attn.to_add_out", plain},
         {"x_block.attn2.proj", "attn2.to_out.0", plain},
         {"x_block.mlp.fc1", "ff.net.0.proj", plain},
         {"x_block.mlp.fc2", "ff.net.2", plain},
         {"context_block.mlp.fc1", "ff_context.net.0.proj", plain},
         {"context_block.mlp.fc2", "ff_context.net.2", plain},
     }},
    {"double_blocks.",
     "transformer_blocks.",
     {
         {"img_mod.lin", "norm1.linear", plain},
         {"txt_mod.lin", "norm1_context.linear", plain},
         {"img_attn.qkv", "attn.to_q", query},
         {"img_attn.qkv", "attn.to_k", key},
         {"img_attn.qkv", "attn.to_v", value},
         {"txt_attn.qkv", "attn.add_q_proj", query},
         {"txt_attn.qkv", "attn.add_k_proj", key},
         {"txt_attn.qkv", "attn.add_v_proj", value},
         {"img_attn.norm.query_norm", "attn.norm_q", plain},
         {"img_attn.norm.key_norm", "attn.norm_k", plain},
         {"txt_attn.norm.query_norm", "attn.norm_added_q", plain},
         {"txt_attn.norm.key_norm", "attn.norm_added_k", plain},
         {"img_attn.proj", "attn.to_out.0", plain},
         {"txt_attn.proj", "attn.to_add_out", plain},
         {"img_mlp.0", "ff.net.0.proj", plain},
         {"img_mlp.2", "ff.net.2", plain},
         {"txt_mlp.0", "ff_context.net.0.proj", plain},
         {"txt_mlp.2", "ff_context.net.2", plain},
         {"img_mlp.0", "ff.linear_in", plain},
         {"img_mlp.2", "ff.linear_out", plain},
         {"txt_mlp.0", "ff_context.linear_in", plain},
         {"txt_mlp.2", "ff_context.linear_out", plain},
     }},
    {"double_blocks.",  // of xlabs
     "double_blocks.",
     {
         {"img_attn.qkv", "qkv_lora1", plain},
         {"img_attn.proj", "proj_lora1", plain},
         {"txt_attn.qkv", "qkv_lora2", plain},
         {"txt_attn.proj", "proj_lora2", plain},
     }},
    {"single_blocks.",  // of xlabs, whose "_lora" belongs to the role's suffix here
     "single_blocks.",
     {
         {"linear1", "qkv", part(Part::qkv, Fused::qkv_mlp)},
         {"linear2", "proj", on_output},
     }},
    {"single_blocks.",
     "single_transformer_blocks.",
     {
         {"modulation.lin", "norm.linear", plain},
         {"linear1", "attn.to_q", part(Part::query, Fused::qkv_mlp)},
         {"linear1", "attn.to_k", part(Part::key, Fused::qkv_mlp)},
         {"linear1", "attn.to_v", part(Part::value, Fused::qkv_mlp)},
         {"linear1", "proj_mlp", part(Part::mlp, Fused::qkv_mlp)},
         {"linear1", "attn.to_qkv_mlp_proj", plain},
         {"linear2", "proj_out", plain},
         {"linear2", "attn.to_out", plain},
         {"norm.query_norm", "attn.norm_q", plain},
         {"norm.key_norm", "attn.norm_k", plain},
     }},
    {"blocks.",  // of Wan
     "blocks.",
     {
         {"self_attn.q", "attn1.to_q", plain},
         {"self_attn.k", "attn1.to_k", plain},
         {"self_attn.v", "attn1.to_v", plain},
         {"self_attn.o", "attn1.to_out.0", plain},
         {"self_attn.norm_q", "attn1.norm_q", plain},
         {"self_attn.norm_k", "attn1.norm_k", plain},
         {"cross_attn.q", "attn2.to_q", plain},
         {"cross_attn.k", "attn2.to_k", plain},
         {"cross_attn.v", "attn2.to_v", plain},
         {"cross_attn.o", "attn2.to_out.0", plain},
         {"cross_attn.norm_q", "attn2.norm_q", plain},
         {"cross_attn.norm_k", "attn2.norm_k", plain},
         {"cross_attn.k_img", "attn2.add_k_proj", plain},
         {"cross_attn.v_img", "attn2.add_v_proj", plain},
         {"cross_attn.norm_k_img", "attn2.norm_added_k", plain},
         {"ffn.0", "ffn.net.0.proj", plain},
         {"ffn.2", "ffn.net.2", plain},
         {"norm3", "norm2", plain},
         {"modulation", "scale_shift_table", plain},
     }},
};

const std::vector<Row> outer_names = {
    {"t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1", plain},
    {"t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2", plain},
    {"y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1", plain},
    {"y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2", plain},
    {"x_embedder.proj", "pos_embed.proj", plain},
    {"time_in.in_layer", "time_text_embed.timestep_embedder.linear_1", plain},
    {"time_in.out_layer", "time_text_embed.timestep_embedder.linear_2", plain},
    {"vector_in.in_layer", "time_text_embed.text_embedder.linear_1", plain},
    {"vector_in.out_layer", "time_text_embed.text_embedder.linear_2", plain},
    {"guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1", plain},
    {"guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2", plain},
    {"time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1", plain},
    {"time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2", plain},
    {"guidance_in.in_layer", "time_guidance_embed.guidance_embedder.linear_1", plain},
    {"guidance_in.out_layer", "time_guidance_embed.guidance_embedder.linear_2", plain},
    {"double_stream_modulation_img.lin", "double_stream_modulation_img.linear", plain},
    {"double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear", plain},
    {"single_stream_modulation.lin", "single_stream_modulation.linear", plain},
    {"txt_in", "context_embedder", plain},
    {"img_in", "x_embedder", plain},
    {"final_layer.linear", "proj_out", plain},
    {"final_layer.adaLN_modulation.1", "norm_out.linear", swapped},
    {"head.head", "proj_out", plain},
    {"head.modulation", "scale_shift_table", plain},
    {"time_embedding.0", "condition_embedder.time_embedder.linear_1", plain},
    {"time_embedding.2", "condition_embedder.time_embedder.linear_2", plain},
    {"time_projection.1", "condition_embedder.time_proj", plain},
    {"text_embedding.0", "condition_embedder.text_embedder.linear_1", plain},
    {"text_embedding.2", "condition_embedder.text_embedder.linear_2", plain},
};

// Z-Image, whose blocks have the same names in both.
const std::vector<Row> attention_names = {
    {".attention.qkv", ".attention.to_q", query},      {".attention.qkv", ".attention.to_k", key},
    {".attention.qkv", ".attention.to_v", value},      {".attention.out", ".attention.to_out.0", plain},
    {".attention.q_norm", ".attention.norm_q", plain}, {".attention.k_norm", ".attention.norm_k", plain},
};

bool digits(const std::string& text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

}  // namespace

void sdcpp::transformer_aliases(const std::string& module, const Emit& emit) {
    for (const Blocks& blocks : block_names) {
        const size_t dot = module.find('.', blocks.ours.size());
        if (!starts_with(module, blocks.ours) || dot == std::string::npos) {
            continue;
        }
        const std::string number = module.substr(blocks.ours.size(), dot - blocks.ours.size());
        for (const Row& row : blocks.rows) {
            if (digits(number) && module.compare(dot + 1, std::string::npos, row.ours) == 0) {
                emit(blocks.theirs + number + "." + row.theirs, row.alias);
            }
        }
    }
    for (const Row& row : outer_names) {
        if (module == row.ours) {
            emit(row.theirs, row.alias);
        }
    }
    for (const Row& row : attention_names) {
        if (ends_with(module, row.ours)) {
            emit(module.substr(0, module.size() - row.ours.size()) + row.theirs, row.alias);
        }
    }
    if (module == "x_embedder" || starts_with(module, "final_layer.")) {  // Z-Image has one for each patch size
        const size_t end = std::min(module.find('.'), module.size());
        emit("all_" + module.substr(0, end) + ".2-1" + module.substr(end), {});
    }
    if (starts_with(module, "net.")) {  // Anima
        emit(module.substr(4), {});
    }
}

void sdcpp::text_aliases(const std::string& module, const Emit& emit) {
    const std::string fused = ".self_attn.in_proj";
    if (ends_with(module, fused)) {
        const std::string layer = module.substr(0, module.size() - fused.size()) + ".self_attn.";
        for (const auto& [name, alias] : {std::pair{'q', query}, {'k', key}, {'v', value}}) {
            emit(layer + name + "_proj", alias);
            emit(layer + "to_" + name, alias);  // of processors: "to_q_lora"
        }
    }
    for (const auto& [ours, theirs] : std::vector<std::pair<std::string, std::string>>{
             {"q_proj", "to_q"}, {"k_proj", "to_k"}, {"v_proj", "to_v"}, {"out_proj", "to_out"}}) {
        if (ends_with(module, ".self_attn." + ours)) {
            emit(module.substr(0, module.size() - ours.size()) + theirs, {});
        }
    }
    if (starts_with(module, "model.")) {  // a language model by itself
        emit(module.substr(6), {});
    }
}
