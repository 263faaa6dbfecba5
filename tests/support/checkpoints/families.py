#!/usr/bin/env python3
"""Write safetensors checkpoints with seeded random weights, in the layouts that the engine loads.

The pictures they render are noise, but everything else about them is real: the tensor names and shapes of the
published models (full size, or ``--tiny``: as narrow as each layout allows), finite activations, and the same
bytes for the same family, size, dtype and seed on every platform. Every family is one all-in-one file.

    make_checkpoint.py model.safetensors                       # SD 1.5 layout, F16, 2.1 GB
    make_checkpoint.py --family zimage --tiny zimage.safetensors

Needs numpy and nothing else, so that it can run before anything is installed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

Shape = tuple[int, ...]

BLOCK = 1_048_573
"""Length of the block of random numbers that all tensors are cut from: prime, so that no tensor row repeats
another one before 2**20 rows, and small, so that one scaled copy per distinct spread fits in memory."""

DTYPES = {"f16": ("F16", 2), "f32": ("F32", 4), "bf16": ("BF16", 2)}


class Layout(dict[str, Shape]):
    """Tensor names and shapes under construction, in file order."""

    def put(self, name: str, *shape: int) -> None:
        """Add one tensor; a name that is already taken is a mistake in a shape table."""
        if name in self:
            raise ValueError(f"tensor {name} is named twice")
        self[name] = shape

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        """Add a linear layer: weight [outputs, inputs], bias [outputs]."""
        self.put(f"{name}.weight", outputs, inputs)
        if bias:
            self.put(f"{name}.bias", outputs)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int = 3) -> None:
        """Add a 2-D convolution: weight [outputs, inputs, kernel, kernel], bias [outputs]."""
        self.put(f"{name}.weight", outputs, inputs, kernel, kernel)
        self.put(f"{name}.bias", outputs)

    def norm(self, name: str, width: int, *, bias: bool = True) -> None:
        """Add a normalisation's weight [width] and, but for RMS norms, its bias [width]."""
        self.put(f"{name}.weight", width)
        if bias:
            self.put(f"{name}.bias", width)

    def nest(self, prefix: str, inner: dict[str, Shape]) -> None:
        """Add a component's tensors under a prefix."""
        for name, shape in inner.items():
            self.put(prefix + name, *shape)


# --- components ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unet:
    """Sizes of the LDM UNet (ldm.modules.diffusionmodules.openaimodel)."""

    channels: int = 320
    mult: Shape = (1, 2, 4, 4)
    res_blocks: int = 2
    depth: Shape = (1, 1, 1, 0)  # transformer blocks per level; 0: a level without attention
    mid_depth: int = 1
    context: int = 768
    labels: int = 0  # width of the vector condition (SDXL); 0: none
    linear_proj: bool = False  # proj_in/proj_out as linear layers (SD 2, SDXL) instead of 1x1 convolutions


def unet(size: Unet) -> Layout:
    """Return the UNet's tensors, without prefix."""
    out = Layout()
    embed = size.channels * 4
    out.linear("time_embed.0", size.channels, embed)
    out.linear("time_embed.2", embed, embed)
    if size.labels:
        out.linear("label_emb.0.0", size.labels, embed)
        out.linear("label_emb.0.2", embed, embed)

    def residual(name: str, inputs: int, outputs: int) -> None:
        out.norm(f"{name}.in_layers.0", inputs)
        out.conv(f"{name}.in_layers.2", inputs, outputs)
        out.linear(f"{name}.emb_layers.1", embed, outputs)
        out.norm(f"{name}.out_layers.0", outputs)
        out.conv(f"{name}.out_layers.3", outputs, outputs)
        if inputs != outputs:
            out.conv(f"{name}.skip_connection", inputs, outputs, 1)

    def projection(name: str, width: int) -> None:
        if size.linear_proj:
            out.linear(name, width, width)
        else:
            out.conv(name, width, width, 1)

    def transformer(name: str, width: int, depth: int) -> None:
        out.norm(f"{name}.norm", width)
        projection(f"{name}.proj_in", width)
        for index in range(depth):
            block = f"{name}.transformer_blocks.{index}"
            for attention, context in (("attn1", width), ("attn2", size.context)):
                out.linear(f"{block}.{attention}.to_q", width, width, bias=False)
                out.linear(f"{block}.{attention}.to_k", context, width, bias=False)
                out.linear(f"{block}.{attention}.to_v", context, width, bias=False)
                out.linear(f"{block}.{attention}.to_out.0", width, width)
            out.linear(f"{block}.ff.net.0.proj", width, width * 8)
            out.linear(f"{block}.ff.net.2", width * 4, width)
            for norm in ("norm1", "norm2", "norm3"):
                out.norm(f"{block}.{norm}", width)
        projection(f"{name}.proj_out", width)

    out.conv("input_blocks.0.0", 4, size.channels)
    skips = [size.channels]
    width, index = size.channels, 0
    for level, (mult, depth) in enumerate(zip(size.mult, size.depth, strict=True)):
        for _ in range(size.res_blocks):
            index += 1
            residual(f"input_blocks.{index}.0", width, mult * size.channels)
            width = mult * size.channels
            if depth:
                transformer(f"input_blocks.{index}.1", width, depth)
            skips.append(width)
        if level + 1 < len(size.mult):
            index += 1
            out.conv(f"input_blocks.{index}.0.op", width, width)
            skips.append(width)

    residual("middle_block.0", width, width)
    transformer("middle_block.1", width, size.mid_depth)
    residual("middle_block.2", width, width)

    index = 0
    for level, (mult, depth) in reversed(list(enumerate(zip(size.mult, size.depth, strict=True)))):
        for block in range(size.res_blocks + 1):
            residual(f"output_blocks.{index}.0", width + skips.pop(), mult * size.channels)
            width = mult * size.channels
            if depth:
                transformer(f"output_blocks.{index}.1", width, depth)
            if level and block == size.res_blocks:
                out.conv(f"output_blocks.{index}.{2 if depth else 1}.conv", width, width)
            index += 1
    out.norm("out.0", width)
    out.conv("out.2", size.channels, 4)
    return out


@dataclass(frozen=True)
class Vae:
    """Sizes of the LDM autoencoder (ldm.modules.diffusionmodules.model)."""

    channels: int = 128
    mult: Shape = (1, 2, 4, 4)
    res_blocks: int = 2
    latent: int = 4
    quant: bool = True  # the 1x1 convolutions around the latent (SD 1, SD 2, SDXL)


def vae(size: Vae) -> Layout:
    """Return the autoencoder's tensors (encoder and decoder), without prefix."""
    out = Layout()

    def residual(name: str, inputs: int, outputs: int) -> None:
        out.norm(f"{name}.norm1", inputs)
        out.conv(f"{name}.conv1", inputs, outputs)
        out.norm(f"{name}.norm2", outputs)
        out.conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            out.conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def middle(name: str, width: int) -> None:
        residual(f"{name}.mid.block_1", width, width)
        out.norm(f"{name}.mid.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            out.conv(f"{name}.mid.attn_1.{part}", width, width, 1)
        residual(f"{name}.mid.block_2", width, width)

    width = size.channels
    out.conv("encoder.conv_in", 3, width)
    for level, mult in enumerate(size.mult):
        for block in range(size.res_blocks):
            residual(f"encoder.down.{level}.block.{block}", width, mult * size.channels)
            width = mult * size.channels
        if level + 1 < len(size.mult):
            out.conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder", width)
    out.norm("encoder.norm_out", width)
    out.conv("encoder.conv_out", width, 2 * size.latent)
    if size.quant:
        out.conv("quant_conv", 2 * size.latent, 2 * size.latent, 1)
        out.conv("post_quant_conv", size.latent, size.latent, 1)

    out.conv("decoder.conv_in", size.latent, width)
    middle("decoder", width)
    for level, mult in reversed(list(enumerate(size.mult))):
        for block in range(size.res_blocks + 1):
            residual(f"decoder.up.{level}.block.{block}", width, mult * size.channels)
            width = mult * size.channels
        if level:
            out.conv(f"decoder.up.{level}.upsample.conv", width, width)
    out.norm("decoder.norm_out", width)
    out.conv("decoder.conv_out", width, 3)
    return out


@dataclass(frozen=True)
class Clip:
    """Sizes of a CLIP text encoder; its heads are 64 wide, its MLP four times the width."""

    width: int = 768
    layers: int = 12
    projection: int = 0  # width of text_projection; 0: none
    vocabulary: int = 49408  # rows that the engine's CLIP tokenizer can ask for
    positions: int = 77


def clip(size: Clip) -> Layout:
    """Return a CLIP text encoder's tensors in the names of transformers (CLIPTextModel)."""
    out = Layout()
    out.put("text_model.embeddings.token_embedding.weight", size.vocabulary, size.width)
    out.put("text_model.embeddings.position_embedding.weight", size.positions, size.width)
    for index in range(size.layers):
        layer = f"text_model.encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out.linear(f"{layer}.self_attn.{part}", size.width, size.width)
        out.norm(f"{layer}.layer_norm1", size.width)
        out.linear(f"{layer}.mlp.fc1", size.width, size.width * 4)
        out.linear(f"{layer}.mlp.fc2", size.width * 4, size.width)
        out.norm(f"{layer}.layer_norm2", size.width)
    out.norm("text_model.final_layer_norm", size.width)
    if size.projection:
        out.put("text_projection.weight", size.projection, size.width)
    return out


def open_clip(size: Clip) -> Layout:
    """Return a CLIP text encoder's tensors in the names of open_clip, as SD 2 and SDXL files have them."""
    out = Layout()
    out.put("positional_embedding", size.positions, size.width)
    out.put("text_projection", size.width, size.projection)
    out.put("token_embedding.weight", size.vocabulary, size.width)
    for index in range(size.layers):
        layer = f"transformer.resblocks.{index}"
        out.put(f"{layer}.attn.in_proj_weight", 3 * size.width, size.width)
        out.put(f"{layer}.attn.in_proj_bias", 3 * size.width)
        out.linear(f"{layer}.attn.out_proj", size.width, size.width)
        out.norm(f"{layer}.ln_1", size.width)
        out.linear(f"{layer}.mlp.c_fc", size.width, size.width * 4)
        out.linear(f"{layer}.mlp.c_proj", size.width * 4, size.width)
        out.norm(f"{layer}.ln_2", size.width)
    out.norm("ln_final", size.width)
    return out


@dataclass(frozen=True)
class T5:
    """Sizes of a T5 v1.1 encoder; its heads are 64 wide."""

    width: int = 4096
    layers: int = 24
    feed: int = 10240
    vocabulary: int = 32128
    buckets: int = 32  # of relative positions


def t5(size: T5) -> Layout:
    """Return a T5 encoder's tensors in the names of transformers (T5EncoderModel)."""
    out = Layout()
    for index in range(size.layers):
        block = f"encoder.block.{index}"
        for part in ("q", "k", "v", "o"):
            out.linear(f"{block}.layer.0.SelfAttention.{part}", size.width, size.width, bias=False)
        if index == 0:
            bias = f"{block}.layer.0.SelfAttention.relative_attention_bias.weight"
            out.put(bias, size.buckets, size.width // 64)
        out.norm(f"{block}.layer.0.layer_norm", size.width, bias=False)
        out.linear(f"{block}.layer.1.DenseReluDense.wi_0", size.width, size.feed, bias=False)
        out.linear(f"{block}.layer.1.DenseReluDense.wi_1", size.width, size.feed, bias=False)
        out.linear(f"{block}.layer.1.DenseReluDense.wo", size.feed, size.width, bias=False)
        out.norm(f"{block}.layer.1.layer_norm", size.width, bias=False)
    out.norm("encoder.final_layer_norm", size.width, bias=False)
    out.put("shared.weight", size.vocabulary, size.width)
    return out


@dataclass(frozen=True)
class Llm:
    """Sizes of a Qwen text model; the defaults are Qwen3 4B."""

    width: int = 2560
    layers: int = 36
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    feed: int = 9728
    vocabulary: int = 151936
    qkv_bias: bool = False  # Qwen2.5
    qk_norm: bool = True  # Qwen3
    vision: bool = False  # the vision tower of Qwen2.5-VL 7B


def llm(size: Llm) -> Layout:
    """Return a Qwen model's tensors in the names of transformers."""
    out = Layout()
    out.put("model.embed_tokens.weight", size.vocabulary, size.width)
    for index in range(size.layers):
        layer = f"model.layers.{index}"
        out.norm(f"{layer}.input_layernorm", size.width, bias=False)
        for part, heads in (("q_proj", size.heads), ("k_proj", size.kv_heads), ("v_proj", size.kv_heads)):
            out.linear(f"{layer}.self_attn.{part}", size.width, heads * size.head, bias=size.qkv_bias)
        out.linear(f"{layer}.self_attn.o_proj", size.heads * size.head, size.width, bias=False)
        if size.qk_norm:
            out.norm(f"{layer}.self_attn.q_norm", size.head, bias=False)
            out.norm(f"{layer}.self_attn.k_norm", size.head, bias=False)
        out.norm(f"{layer}.post_attention_layernorm", size.width, bias=False)
        for part, inputs, outputs in (
            ("gate_proj", size.width, size.feed),
            ("up_proj", size.width, size.feed),
            ("down_proj", size.feed, size.width),
        ):
            out.linear(f"{layer}.mlp.{part}", inputs, outputs, bias=False)
    out.norm("model.norm", size.width, bias=False)
    if size.vision:
        out.nest("visual.", _qwen_vision(size.width))
    return out


def _qwen_vision(outputs: int) -> Layout:
    """Return the tensors of Qwen2.5-VL's vision tower, which only image-to-image uses."""
    out = Layout()
    width, feed = 1280, 3420
    out.put("patch_embed.proj.weight", width, 3, 2, 14, 14)
    for index in range(32):
        block = f"blocks.{index}"
        out.norm(f"{block}.norm1", width, bias=False)
        out.norm(f"{block}.norm2", width, bias=False)
        out.linear(f"{block}.attn.qkv", width, 3 * width)
        out.linear(f"{block}.attn.proj", width, width)
        out.linear(f"{block}.mlp.gate_proj", width, feed)
        out.linear(f"{block}.mlp.up_proj", width, feed)
        out.linear(f"{block}.mlp.down_proj", feed, width)
    out.norm("merger.ln_q", width, bias=False)
    out.linear("merger.mlp.0", 4 * width, 4 * width)
    out.linear("merger.mlp.2", 4 * width, outputs)
    return out


@dataclass(frozen=True)
class Mmdit:
    """Sizes of SD 3's transformer; its heads are 64 wide and as many as its blocks."""

    depth: int = 24
    context: int = 4096
    pooled: int = 2048
    positions: int = 192 * 192


def mmdit(size: Mmdit) -> Layout:
    """Return SD 3's transformer, without prefix."""
    out = Layout()
    width = 64 * size.depth
    out.put("pos_embed", 1, size.positions, width)
    out.put("x_embedder.proj.weight", width, 16, 2, 2)
    out.put("x_embedder.proj.bias", width)
    for name, inputs in (("t_embedder", 256), ("y_embedder", size.pooled)):
        out.linear(f"{name}.mlp.0", inputs, width)
        out.linear(f"{name}.mlp.2", width, width)
    out.linear("context_embedder", size.context, width)
    for index in range(size.depth):
        for stream in ("context_block", "x_block"):
            block = f"joint_blocks.{index}.{stream}"
            last = stream == "context_block" and index == size.depth - 1  # nothing reads its output
            out.linear(f"{block}.adaLN_modulation.1", width, (2 if last else 6) * width)
            out.linear(f"{block}.attn.qkv", width, 3 * width)
            if not last:
                out.linear(f"{block}.attn.proj", width, width)
                out.linear(f"{block}.mlp.fc1", width, 4 * width)
                out.linear(f"{block}.mlp.fc2", 4 * width, width)
    out.linear("final_layer.adaLN_modulation.1", width, 2 * width)
    out.linear("final_layer.linear", width, 2 * 2 * 16)
    return out


@dataclass(frozen=True)
class Flux:
    """Sizes of FLUX.1's transformer; its heads are 128 wide, as its rope axes (16, 56, 56) ask."""

    width: int = 3072
    double: int = 19
    single: int = 38
    context: int = 4096
    pooled: int = 768


def flux_transformer(size: Flux) -> Layout:
    """Return FLUX.1 dev's transformer (with guidance embedding), without prefix."""
    out = Layout()
    width = size.width
    out.linear("img_in", 64, width)
    out.linear("txt_in", size.context, width)
    for name, inputs in (("time_in", 256), ("vector_in", size.pooled), ("guidance_in", 256)):
        out.linear(f"{name}.in_layer", inputs, width)
        out.linear(f"{name}.out_layer", width, width)
    for index in range(size.double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{index}.{stream}"
            out.linear(f"{block}_mod.lin", width, 6 * width)
            out.linear(f"{block}_attn.qkv", width, 3 * width)
            out.put(f"{block}_attn.norm.query_norm.scale", 128)
            out.put(f"{block}_attn.norm.key_norm.scale", 128)
            out.linear(f"{block}_attn.proj", width, width)
            out.linear(f"{block}_mlp.0", width, 4 * width)
            out.linear(f"{block}_mlp.2", 4 * width, width)
    for index in range(size.single):
        block = f"single_blocks.{index}"
        out.linear(f"{block}.modulation.lin", width, 3 * width)
        out.linear(f"{block}.linear1", width, (3 + 4) * width)
        out.linear(f"{block}.linear2", (1 + 4) * width, width)
        out.put(f"{block}.norm.query_norm.scale", 128)
        out.put(f"{block}.norm.key_norm.scale", 128)
    out.linear("final_layer.adaLN_modulation.1", width, 2 * width)
    out.linear("final_layer.linear", width, 64)
    return out


@dataclass(frozen=True)
class ZImage:
    """Sizes of Z-Image's transformer; its heads are 128 wide, as its rope axes (32, 48, 48) ask."""

    width: int = 3840  # at least 256, the width of the time embedding that modulates the blocks
    layers: int = 30
    refiners: int = 2
    context: int = 2560


def zimage_transformer(size: ZImage) -> Layout:
    """Return Z-Image's transformer in the names of the original release, without prefix."""
    out = Layout()
    width, time = size.width, 256
    feed = -(-(width * 8 // 3) // 256) * 256
    out.linear("x_embedder", 2 * 2 * 16, width)
    out.linear("t_embedder.mlp.0", 256, min(width, 1024))
    out.linear("t_embedder.mlp.2", min(width, 1024), time)
    out.norm("cap_embedder.0", size.context, bias=False)
    out.linear("cap_embedder.1", size.context, width)
    out.put("x_pad_token", 1, width)
    out.put("cap_pad_token", 1, width)
    stacks = (("noise_refiner", size.refiners), ("context_refiner", size.refiners), ("layers", size.layers))
    for stack, count in stacks:
        for index in range(count):
            block = f"{stack}.{index}"
            out.linear(f"{block}.attention.qkv", width, 3 * width, bias=False)
            out.linear(f"{block}.attention.out", width, width, bias=False)
            out.norm(f"{block}.attention.q_norm", 128, bias=False)
            out.norm(f"{block}.attention.k_norm", 128, bias=False)
            out.linear(f"{block}.feed_forward.w1", width, feed, bias=False)
            out.linear(f"{block}.feed_forward.w2", feed, width, bias=False)
            out.linear(f"{block}.feed_forward.w3", width, feed, bias=False)
            for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
                out.norm(f"{block}.{norm}", width, bias=False)
            if stack != "context_refiner":  # the prompt is refined once, for all time steps
                out.linear(f"{block}.adaLN_modulation.0", time, 4 * width)
    out.linear("final_layer.linear", width, 2 * 2 * 16)
    out.linear("final_layer.adaLN_modulation.1", time, width)
    return out


@dataclass(frozen=True)
class QwenImage:
    """Sizes of Qwen-Image's transformer; its heads are 128 wide, as its rope axes (16, 56, 56) ask."""

    width: int = 3072
    layers: int = 60
    context: int = 3584


def qwen_image_transformer(size: QwenImage) -> Layout:
    """Return Qwen-Image's transformer in the names of diffusers, without prefix."""
    out = Layout()
    width = size.width
    out.linear("time_text_embed.timestep_embedder.linear_1", 256, width)
    out.linear("time_text_embed.timestep_embedder.linear_2", width, width)
    out.norm("txt_norm", size.context, bias=False)
    out.linear("img_in", 2 * 2 * 16, width)
    out.linear("txt_in", size.context, width)
    for index in range(size.layers):
        block = f"transformer_blocks.{index}"
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            out.linear(f"{block}.attn.{part}", width, width)
        for part in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            out.linear(f"{block}.attn.{part}", width, width)
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            out.norm(f"{block}.attn.{norm}", 128, bias=False)
        for stream in ("img", "txt"):
            out.linear(f"{block}.{stream}_mod.1", width, 6 * width)
            out.linear(f"{block}.{stream}_mlp.net.0.proj", width, 4 * width)
            out.linear(f"{block}.{stream}_mlp.net.2", 4 * width, width)
    out.linear("norm_out.linear", width, 2 * width)
    out.linear("proj_out", width, 2 * 2 * 16)
    return out


@dataclass(frozen=True)
class WanVae:
    """Sizes of the Wan 2.1 video autoencoder, which Qwen-Image uses for still pictures."""

    channels: int = 96
    mult: Shape = (1, 2, 4, 4)
    res_blocks: int = 2
    latent: int = 16


def wan_vae(size: WanVae) -> Layout:
    """Return the video autoencoder's tensors (encoder and decoder), without prefix."""
    out = Layout()
    widths = [mult * size.channels for mult in size.mult]

    def conv3(name: str, inputs: int, outputs: int, *kernel: int) -> None:
        out.put(f"{name}.weight", outputs, inputs, *(kernel or (3, 3, 3)))
        out.put(f"{name}.bias", outputs)

    def residual(name: str, inputs: int, outputs: int) -> None:
        out.put(f"{name}.residual.0.gamma", inputs, 1, 1, 1)
        conv3(f"{name}.residual.2", inputs, outputs)
        out.put(f"{name}.residual.3.gamma", outputs, 1, 1, 1)
        conv3(f"{name}.residual.6", outputs, outputs)
        if inputs != outputs:
            conv3(f"{name}.shortcut", inputs, outputs, 1, 1, 1)

    def middle(name: str, width: int) -> None:
        residual(f"{name}.middle.0", width, width)
        out.put(f"{name}.middle.1.norm.gamma", width, 1, 1)
        out.conv(f"{name}.middle.1.to_qkv", width, 3 * width, 1)
        out.conv(f"{name}.middle.1.proj", width, width, 1)
        residual(f"{name}.middle.2", width, width)

    width, index = size.channels, 0
    conv3("encoder.conv1", 3, width)
    for level, outputs in enumerate(widths):
        for _ in range(size.res_blocks):
            residual(f"encoder.downsamples.{index}", width, outputs)
            width, index = outputs, index + 1
        if level + 1 < len(widths):
            out.conv(f"encoder.downsamples.{index}.resample.1", width, width)
            if level > 0:  # halves time too
                conv3(f"encoder.downsamples.{index}.time_conv", width, width, 3, 1, 1)
            index += 1
    middle("encoder", width)
    out.put("encoder.head.0.gamma", width, 1, 1, 1)
    conv3("encoder.head.2", width, 2 * size.latent)
    conv3("conv1", 2 * size.latent, 2 * size.latent, 1, 1, 1)
    conv3("conv2", size.latent, size.latent, 1, 1, 1)

    index = 0
    conv3("decoder.conv1", size.latent, width)
    middle("decoder", width)
    for level, outputs in enumerate(reversed(widths)):
        for _ in range(size.res_blocks + 1):
            residual(f"decoder.upsamples.{index}", width, outputs)
            width, index = outputs, index + 1
        if level + 1 < len(widths):
            out.conv(f"decoder.upsamples.{index}.resample.1", width, width // 2)
            if level < 2:  # doubles time too
                conv3(f"decoder.upsamples.{index}.time_conv", width, 2 * width, 3, 1, 1)
            width, index = width // 2, index + 1
    out.put("decoder.head.0.gamma", width, 1, 1, 1)
    conv3("decoder.head.2", width, 3)
    return out


# --- families -----------------------------------------------------------------------------------------------

CLIP_L = Clip()
CLIP_G = Clip(width=1280, layers=32, projection=1280)
OPEN_CLIP_H = Clip(width=1024, layers=24, projection=1024)

# Tiny: two layers each, and widths that differ wherever the engine could mistake one for the other. What
# keeps them from being smaller: group normalisations of 32 groups, heads of 64 in CLIP and T5, heads of 128
# for rope, and whole vocabularies.
TINY_VAE = Vae(channels=32)
TINY_CLIP_L = Clip(width=64, layers=2)
TINY_CLIP_G = Clip(width=128, layers=2, projection=128)
TINY_T5 = T5(width=256, layers=2, feed=320)
TINY_LLM = Llm(width=192, layers=2, heads=2, kv_heads=1, feed=320)


def sd1(tiny: bool) -> Layout:
    """SD 1.5, in CompVis names."""
    out = Layout()
    size = Unet(channels=32, context=TINY_CLIP_L.width) if tiny else Unet()
    out.nest("model.diffusion_model.", unet(size))
    out.nest("first_stage_model.", vae(TINY_VAE if tiny else Vae()))
    out.nest("cond_stage_model.transformer.", clip(TINY_CLIP_L if tiny else CLIP_L))
    return out


def sd2(tiny: bool) -> Layout:
    """SD 2.1: open_clip names, heads of 64, linear projections around the transformers."""
    out = Layout()
    text = TINY_CLIP_G if tiny else OPEN_CLIP_H
    size = Unet(channels=64 if tiny else 320, context=text.width, linear_proj=True)
    out.nest("model.diffusion_model.", unet(size))
    out.nest("first_stage_model.", vae(TINY_VAE if tiny else Vae()))
    out.nest("cond_stage_model.model.", open_clip(text))
    return out


def sdxl(tiny: bool) -> Layout:
    """SDXL base: two text encoders side by side, pooled text and picture sizes as the vector condition."""
    out = Layout()
    first, second = (TINY_CLIP_L, TINY_CLIP_G) if tiny else (CLIP_L, CLIP_G)
    size = Unet(
        channels=64 if tiny else 320,
        mult=(1, 2, 4),
        depth=(0, 1, 2) if tiny else (0, 2, 10),
        mid_depth=2 if tiny else 10,
        context=first.width + second.width,
        labels=second.projection + 6 * 256,
        linear_proj=True,
    )
    out.nest("model.diffusion_model.", unet(size))
    out.nest("first_stage_model.", vae(TINY_VAE if tiny else Vae()))
    out.nest("conditioner.embedders.0.transformer.", clip(first))
    out.nest("conditioner.embedders.1.model.", open_clip(second))
    return out


def sd3(tiny: bool) -> Layout:
    """SD 3 medium with its three text encoders."""
    out = Layout()
    first, second, third = (TINY_CLIP_L, TINY_CLIP_G, TINY_T5) if tiny else (CLIP_L, CLIP_G, T5())
    size = Mmdit(depth=2 if tiny else 24, context=third.width, pooled=first.width + second.projection)
    out.nest("model.diffusion_model.", mmdit(size))
    out.nest("first_stage_model.", vae(replace(TINY_VAE if tiny else Vae(), latent=16, quant=False)))
    out.nest("text_encoders.clip_l.transformer.", clip(first))
    out.nest("text_encoders.clip_g.transformer.", clip(second))
    out.nest("text_encoders.t5xxl.transformer.", t5(third))
    return out


def flux(tiny: bool) -> Layout:
    """FLUX.1 dev with its two text encoders."""
    out = Layout()
    first, second = (TINY_CLIP_L, TINY_T5) if tiny else (CLIP_L, T5())
    size = Flux(width=256, double=2, single=2) if tiny else Flux()
    size = replace(size, context=second.width, pooled=first.width)
    out.nest("model.diffusion_model.", flux_transformer(size))
    out.nest("first_stage_model.", vae(replace(TINY_VAE if tiny else Vae(), latent=16, quant=False)))
    out.nest("text_encoders.clip_l.transformer.", clip(first))
    out.nest("text_encoders.t5xxl.transformer.", t5(second))
    return out


def zimage(tiny: bool) -> Layout:
    """Z-Image with Qwen3 4B as its text encoder and FLUX.1's autoencoder."""
    out = Layout()
    text = TINY_LLM if tiny else Llm()
    size = replace(ZImage(width=256, layers=2) if tiny else ZImage(), context=text.width)
    out.nest("model.diffusion_model.", zimage_transformer(size))
    out.nest("first_stage_model.", vae(replace(TINY_VAE if tiny else Vae(), latent=16, quant=False)))
    out.nest("text_encoders.llm.", llm(text))
    return out


def qwen_image(tiny: bool) -> Layout:
    """Qwen-Image with Qwen2.5-VL 7B (tiny: without vision tower) as text encoder and Wan's autoencoder."""
    out = Layout()
    text = TINY_LLM if tiny else Llm(width=3584, layers=28, heads=28, kv_heads=4, feed=18944, vision=True)
    text = replace(text, vocabulary=152064, qkv_bias=True, qk_norm=False)
    size = replace(QwenImage(width=256, layers=2) if tiny else QwenImage(), context=text.width)
    out.nest("model.diffusion_model.", qwen_image_transformer(size))
    out.nest("first_stage_model.", wan_vae(WanVae(channels=16) if tiny else WanVae()))
    out.nest("text_encoders.llm.", llm(text))
    return out


FAMILIES: dict[str, Callable[[bool], Layout]] = {
    "sd1": sd1,
    "sd2": sd2,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "zimage": zimage,
    "qwen_image": qwen_image,
}


def checkpoint_shapes(family: str, tiny: bool = False) -> dict[str, Shape]:
    """Return the tensors of a family's checkpoint.

    Args:
        family: one of ``FAMILIES``.
        tiny: as narrow as the layout allows, instead of the published sizes.

    Returns:
        Tensor name -> shape, row-major as in the file, in file order.

    Raises:
        ValueError: the family is unknown; the message lists the known ones.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: choose from {', '.join(FAMILIES)}")
    return dict(FAMILIES[family](tiny))


LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def lora_shapes(tiny: bool = False, rank: int = 4) -> dict[str, Shape]:
    """Return a LoRA for the attention layers of sd1's UNet and text encoder.

    Args:
        tiny: for the tiny sd1 checkpoint instead of the full-size one.
        rank: inner width of the low-rank product, >= 1.

    Returns:
        Tensor name -> shape, in the names of sd-scripts (``lora_unet_down_blocks_0_...``), as most LoRA
        files for SD 1 have them.
    """
    out = Layout()
    for name, shape in checkpoint_shapes("sd1", tiny).items():
        module = name.removesuffix(".weight")
        if module == name or not module.endswith(LORA_TARGETS):
            continue
        module = module.removeprefix("model.diffusion_model.")
        parts = module.split(".")
        if module.startswith("cond_stage_model."):
            module = module.replace("cond_stage_model.transformer.", "te.")
        elif parts[0] == "middle_block":
            module = ".".join(["unet", "mid_block", "attentions", "0", *parts[2:]])
        else:  # three blocks to a level; the first input block is a convolution
            stack, first = ("up_blocks", 0) if parts[0] == "output_blocks" else ("down_blocks", 1)
            level, block = divmod(int(parts[1]) - first, 3)
            module = ".".join(["unet", stack, str(level), "attentions", str(block), *parts[3:]])
        key = "lora_" + module.replace(".", "_")
        out.put(f"{key}.lora_down.weight", rank, shape[1])
        out.put(f"{key}.lora_up.weight", shape[0], rank)
        out.put(f"{key}.alpha")
    return dict(out)


# --- weights ------------------------------------------------------------------------------------------------


def weight_spread(name: str, shape: Shape) -> tuple[float, float]:
    """Return (mean, standard deviation) of a tensor's random values.

    Matrices and kernels are scaled by their fan-in: an input of variance one gives an output of variance one,
    and activations stay finite through every depth. Norms are near one and biases near zero, but not exactly,
    so that swapping two of them changes the picture.
    """
    if name.endswith("bias"):
        return 0.0, 0.02
    if len(shape) < 2 or name.endswith("gamma"):
        return 1.0, 0.1
    if name.endswith(("embedding.weight", "positional_embedding", "embed_tokens.weight")):
        return 0.0, 0.02
    if name.endswith("shared.weight"):
        return 0.0, 1.0  # T5 adds the tokens to its residual stream as they are
    gain = 1.0
    if name.endswith(("decoder.conv_out.weight", "decoder.head.2.weight")):
        gain = 0.5  # pixels spread over [-1, 1] instead of piling up at the ends
    elif name.endswith("SelfAttention.q.weight"):
        gain = 0.125  # T5 does not divide its logits by the square root of its heads' width (64)
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


@functools.lru_cache(maxsize=1)
def _normal_block(seed: int) -> np.ndarray:
    """Return BLOCK nearly normal float32 numbers: sums of four 16-bit uniforms, scaled to variance one.

    Only integer arithmetic and one rounding are used, from a bit stream that numpy keeps stable (NEP 19), so
    the numbers do not depend on the platform's libm or on numpy's version, as those of standard_normal() may.
    """
    bits = np.random.PCG64(seed).random_raw(BLOCK)
    total = np.full(BLOCK, -2 * 65535, dtype=np.int32)
    for shift in (0, 16, 32, 48):
        total += ((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int32)
    return total.astype(np.float32) * np.float32(1.0 / math.sqrt((65536**2 - 1) / 3))


@functools.lru_cache(maxsize=48)
def _value_block(seed: int, mean: float, spread: float, dtype: str) -> bytes:
    """Return the random block with a mean and a spread, encoded little-endian in the file's dtype."""
    values = _normal_block(seed) * np.float32(spread) + np.float32(mean)
    if dtype == "f16":
        return values.astype("<f2").tobytes()
    if dtype == "f32":
        return values.astype("<f4").tobytes()
    bits = values.view(np.uint32)  # bf16: the upper half, rounded to nearest, ties to even
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def _tensor_pieces(name: str, shape: Shape, dtype: str, seed: int) -> Iterable[memoryview]:
    """Yield a tensor's bytes in pieces: the block of its spread, from an offset that its name decides."""
    itemsize = DTYPES[dtype][1]
    block = memoryview(_value_block(seed, *weight_spread(name, shape), dtype))
    start = zlib.crc32(name.encode()) % BLOCK * itemsize
    left = math.prod(shape) * itemsize
    while left:
        piece = block[start : start + left]
        yield piece
        left -= len(piece)
        start = 0


# --- the file -----------------------------------------------------------------------------------------------


def safetensors_header(shapes: dict[str, Shape], dtype: str, metadata: dict[str, str]) -> bytes:
    """Return the safetensors header: its length (u64, little-endian) and JSON padded with spaces to 8 bytes.

    Source: https://huggingface.co/docs/safetensors/index, "Format".
    """
    code, itemsize = DTYPES[dtype]
    entries: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * itemsize
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_safetensors(path: Path, shapes: dict[str, Shape], *, dtype: str, seed: int, metadata: dict[str, str]) -> None:
    """Write random tensors to a safetensors file, beside it first, then renamed: no half file is ever left.

    Args:
        path: the file; its folder is made when missing.
        shapes: tensor name -> shape, in file order.
        dtype: f16, f32 or bf16, for all tensors.
        seed: which random numbers, >= 0.
        metadata: strings for the header's ``__metadata__``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "xb") as file:
            _write_tensors(file, shapes, dtype, seed, metadata)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _write_tensors(file: BinaryIO, shapes: dict[str, Shape], dtype: str, seed: int, metadata: dict[str, str]) -> None:
    """Write header and tensors one after the other; never holds more than the cached blocks."""
    file.write(safetensors_header(shapes, dtype, metadata))
    for name, shape in shapes.items():
        for piece in _tensor_pieces(name, shape, dtype, seed):
            file.write(piece)


def write_checkpoint(
    family: str, out: str | os.PathLike[str], *, tiny: bool = False, dtype: str = "f16", seed: int = 0
) -> dict[str, Path]:
    """Write a family's checkpoint.

    Args:
        family: one of ``FAMILIES``.
        out: the file to write; replaced when it exists.
        tiny: as narrow as the layout allows, instead of the published sizes.
        dtype: f16, f32 or bf16.
        seed: which random weights, >= 0.

    Returns:
        Engine keyword -> path: ``{"model": out}``, as every family fits in one file.

    Raises:
        ValueError: unknown family or dtype, negative seed.
        OSError: the file cannot be written.
    """
    metadata = {"family": family, "size": "tiny" if tiny else "full"}
    return {"model": _write(out, checkpoint_shapes(family, tiny), dtype, seed, metadata)}


def write_lora(
    out: str | os.PathLike[str], *, tiny: bool = False, dtype: str = "f16", seed: int = 0, rank: int = 4
) -> Path:
    """Write a random LoRA for the sd1 checkpoint of the same size; see write_checkpoint and lora_shapes."""
    metadata = {"family": "sd1", "size": "tiny" if tiny else "full", "ss_network_dim": str(rank)}
    return _write(out, lora_shapes(tiny, rank), dtype, seed, metadata)


def _write(
    out: str | os.PathLike[str], shapes: dict[str, Shape], dtype: str, seed: int, metadata: dict[str, str]
) -> Path:
    """Check the arguments that the writers share and write the file."""
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative: choose 0 or more")
    path = Path(out)
    metadata = {"format": "pt", **metadata, "seed": str(seed)}
    write_safetensors(path, shapes, dtype=dtype, seed=seed, metadata=metadata)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", metavar="OUT", type=Path, help="the .safetensors file to write")
    parser.add_argument("--family", choices=list(FAMILIES), default="sd1", help="model family (default: sd1)")
    parser.add_argument("--tiny", action="store_true", help="as narrow as the layout allows")
    parser.add_argument("--lora", action="store_true", help="write a LoRA for the sd1 checkpoint instead")
    parser.add_argument("--dtype", choices=list(DTYPES), default="f16", help="weight type (default: f16)")
    parser.add_argument("--seed", type=int, default=0, help="which random weights (default: 0)")
    options = parser.parse_args(arguments)
    if options.lora and options.family != "sd1":
        parser.error("--lora is made for --family sd1 only")
    sizes = {"tiny": options.tiny, "dtype": options.dtype, "seed": options.seed}
    try:
        if options.lora:
            paths = {"lora": write_lora(options.out, **sizes)}
        else:
            paths = write_checkpoint(options.family, options.out, **sizes)
    except (OSError, ValueError) as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 1
    for keyword, path in paths.items():
        print(f"{keyword}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
