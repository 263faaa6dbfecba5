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
