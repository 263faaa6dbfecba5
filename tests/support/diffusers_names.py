"""A checkpoint as a folder in diffusers' layout has it: other names, and text encoders with split q, k, v."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]

_RESIDUAL = [
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
]
_UNET = [
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^label_emb\.0\.0\.", "add_embedding.linear_1."),
    (r"^label_emb\.0\.2\.", "add_embedding.linear_2."),
    (r"^input_blocks\.0\.0\.", "conv_in."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.", "conv_out."),
    (r"^middle_block\.0\.", "mid_block.resnets.0."),
    (r"^middle_block\.1\.", "mid_block.attentions.0."),
    (r"^middle_block\.2\.", "mid_block.resnets.1."),
]
_VAE = [
    (r"^(encoder\.)down\.(\d+)\.block\.", r"\1down_blocks.\2.resnets."),
    (r"^(encoder\.)down\.(\d+)\.downsample\.", r"\1down_blocks.\2.downsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
]
_OPEN_CLIP = [
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^text_projection$", "text_projection.weight"),
]


def _renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def unet(weights: Weights) -> dict[str, np.ndarray]:
    """Return a UNet's tensors in diffusers' names; three blocks a level, as all published ones have."""

    def block(name: str) -> str:
        found = re.match(r"^(input|output)_blocks\.(\d+)\.(\d)\.(.*)$", name)
        if found is None or name.startswith("input_blocks.0."):
            return name
        side, index, part, rest = found[1], int(found[2]), found[3], found[4]
        level, place = divmod(index - 1 if side == "input" else index, 3)
        where = f"{'down' if side == 'input' else 'up'}_blocks.{level}."
        if rest.startswith("op."):
            return f"{where}downsamplers.0.conv.{rest[3:]}"
        if rest.startswith("conv."):
            return f"{where}upsamplers.0.{rest}"
        return f"{where}{'resnets' if part == '0' else 'attentions'}.{place}.{rest}"

    named = {}
    for name, array in weights.items():
        new = _renamed(block(name), _UNET)
        if ".resnets." in new:
            for old, part in _RESIDUAL:
                new = new.replace(old, part)
        named[new] = array
    return named


def vae(weights: Weights) -> dict[str, np.ndarray]:
    """Return a VAE's tensors in diffusers' names; its attention has matrices instead of 1x1 convolutions."""

    def up(name: str) -> str:
        found = re.match(r"^decoder\.up\.(\d)\.(block|upsample)\.(.*)$", name)
        if found is None:
            return name
        part = "resnets" if found[2] == "block" else "upsamplers.0"
        return f"decoder.up_blocks.{3 - int(found[1])}.{part}.{found[3]}"

    named = {}
    for name, array in weights.items():
        new = _renamed(up(name), _VAE)
        named[new] = array.reshape(array.shape[:2]) if ".attentions." in new and array.ndim == 4 else array
    return named


def open_clip(weights: Weights) -> dict[str, np.ndarray]:
    """Return an open_clip text encoder's tensors in the names of transformers."""
    named = {}
    for name, array in weights.items():
        new = _renamed(name, _OPEN_CLIP)
        if "in_proj" in new:
            kind = new.rsplit("in_proj_", 1)[1]
            for part, piece in zip("qkv", np.split(array, 3), strict=True):
                named[new.replace(f"in_proj_{kind}", f"{part}_proj.{kind}")] = piece
        else:
            named[new] = array.T if new == "text_projection.weight" else array
    return named


def below(weights: Weights, prefix: str) -> dict[str, np.ndarray]:
    """Return the tensors under a prefix, without it."""
    return {name[len(prefix) :]: array for name, array in weights.items() if name.startswith(prefix)}


_WAN_RESIDUAL = [
    ("residual.0.", "norm1."),
    ("residual.2.", "conv1."),
    ("residual.3.", "norm2."),
    ("residual.6.", "conv2."),
    ("shortcut.", "conv_shortcut."),
]
_WAN = [
    (r"^(time|text)_embedding\.0\.", r"condition_embedder.\1_embedder.linear_1."),
    (r"^(time|text)_embedding\.2\.", r"condition_embedder.\1_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
    (r"^img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
    (r"^img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
    (r"^img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
    (r"^img_emb\.emb_pos$", "condition_embedder.image_embedder.pos_embed"),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"\.modulation$", ".scale_shift_table"),
    (r"\.norm3\.", ".norm2."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
    (r"\.(before|after)_proj\.", lambda found: {"before": ".proj_in.", "after": ".proj_out."}[found[1]]),
    (r"\.cross_attn\.norm_k_img\.", ".attn2.norm_added_k."),
    (r"\.cross_attn\.([kv])_img\.", r".attn2.add_\1_proj."),
    (r"\.(self|cross)_attn\.o\.", r".\1_attn.to_out.0."),
    (r"\.(self|cross)_attn\.([qkv])\.", r".\1_attn.to_\2."),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
]
_WAN_VAE = [
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(en|de)coder\.conv1\.", r"\1coder.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.([02])\.", lambda found: f".mid_block.resnets.{int(found[1]) // 2}."),
    # 2.2: blocks in levels. 2.1: one after the other, of the decoder four to a level.
    (r"\.(down|up)samples\.(\d+)\.\1samples\.\d+\.(resample|time_conv)\.", r".\1_blocks.\2.\1sampler.\3."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.upsamples\.(\d+)\.(?=resample|time_conv)", lambda found: f".up_blocks.{int(found[1]) // 4}.upsamplers.0."),
    (r"\.upsamples\.(\d+)\.", lambda found: f".up_blocks.{int(found[1]) // 4}.resnets.{int(found[1]) % 4}."),
]


def wan_name(name: str, part: str) -> str:
    """Return diffusers' name of a tensor of Wan's ``transformer`` or ``vae``."""
    for old, new in _WAN if part == "transformer" else _WAN_VAE:
        name = re.sub(old, new, name)
    for own, theirs in _WAN_RESIDUAL if part == "vae" else ():
        name = name.replace(own, theirs)
    return name
