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


# --- components -------------------------------------------------------------------------------------------------


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


# --- families ---------------------------------------------------------------------------------------------------

TINY_VAE = Vae(channels=32, mult=(1, 1, 1, 1))  # 32: the group normalisations have 32 groups


def sd1(tiny: bool) -> Layout:
    """SD 1.x: CompVis names."""
    size, text, image = Unet(), Clip(), Vae()
    if tiny:
        size = replace(size, channels=32, context=64)
        text = replace(text, width=64, layers=2)
        image = TINY_VAE
    out = Layout()
    out.nest("model.diffusion_model.", unet(size))
    out.nest("first_stage_model.", vae(image))
    out.nest("cond_stage_model.transformer.", clip(text))
    return out


FAMILIES: dict[str, Callable[[bool], Layout]] = {"sd1": sd1}


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


# --- weights ----------------------------------------------------------------------------------------------------


def weight_spread(name: str, shape: Shape) -> tuple[float, float]:
    """Return (mean, standard deviation) of a tensor's random values.

    Matrices and kernels are scaled by their fan-in, so that a unit-variance input gives a unit-variance output and
    activations stay finite through every depth; norms are near one and biases near zero, but not exactly, so that
    swapping two of them changes the picture.
    """
    if name.endswith("bias"):
        return 0.0, 0.02
    if len(shape) < 2:
        return 1.0, 0.1
    if "embedding.weight" in name:
        return 0.0, 0.02
    gain = 1.0
    if name.endswith("decoder.conv_out.weight"):
        gain = 0.5  # pixels spread over [-1, 1] instead of piling up at the ends
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


@functools.lru_cache(maxsize=1)
def _normal_block(seed: int) -> np.ndarray:
    """Return BLOCK nearly normal float32 numbers: sums of four 16-bit uniforms, scaled to variance one.

    Only integer arithmetic and one rounding are used, from a bit stream that numpy keeps stable (NEP 19), so the
    numbers do not depend on the platform's libm or on numpy's version, as those of standard_normal() may.
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
    """Yield a tensor's bytes in pieces: the block that fits its spread, from an offset that its name decides."""
    itemsize = DTYPES[dtype][1]
    block = memoryview(_value_block(seed, *weight_spread(name, shape), dtype))
    start = zlib.crc32(name.encode()) % BLOCK * itemsize
    left = math.prod(shape) * itemsize
    while left:
        piece = block[start : start + left]
        yield piece
        left -= len(piece)
        start = 0


# --- the file ---------------------------------------------------------------------------------------------------


def _header(shapes: dict[str, Shape], dtype: str, metadata: dict[str, str]) -> bytes:
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
    """Write random tensors to a safetensors file, beside it first and then renamed, so that no half file is left.

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
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _write_tensors(
    file: BinaryIO, shapes: dict[str, Shape], dtype: str, seed: int, metadata: dict[str, str]
) -> None:
    """Write header and tensors one after the other; never holds more than the cached blocks."""
    file.write(_header(shapes, dtype, metadata))
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
    shapes = checkpoint_shapes(family, tiny)
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative: choose 0 or more")
    path = Path(out)
    metadata = {"format": "pt", "family": family, "size": "tiny" if tiny else "full", "seed": str(seed)}
    write_safetensors(path, shapes, dtype=dtype, seed=seed, metadata=metadata)
    return {"model": path}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", metavar="OUT", type=Path, help="the .safetensors file to write")
    parser.add_argument("--family", choices=list(FAMILIES), default="sd1", help="model family (default: sd1)")
    parser.add_argument("--tiny", action="store_true", help="as narrow as the layout allows")
    parser.add_argument("--dtype", choices=list(DTYPES), default="f16", help="weight type (default: f16)")
    parser.add_argument("--seed", type=int, default=0, help="which random weights (default: 0)")
    options = parser.parse_args(arguments)
    try:
        paths = write_checkpoint(
            options.family, options.out, tiny=options.tiny, dtype=options.dtype, seed=options.seed
        )
    except (OSError, ValueError) as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 1
    for keyword, path in paths.items():
        print(f"{keyword}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
