"""Parts that work beside the tiny SD 1 checkpoint: a ControlNet, TAEs and an upscaler."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from .families import checkpoint_shapes
from .files import write_safetensors
from .layout import Layout


def control() -> Layout:
    """Return a ControlNet for the tiny UNet."""
    out = Layout()
    unet = "model.diffusion_model."
    for name, shape in checkpoint_shapes("sd1", tiny=True).items():
        if name.startswith((f"{unet}time_embed", f"{unet}input_blocks", f"{unet}middle_block")):
            out.put(name.replace(unet, "control_model."), *shape)
    channels = out["control_model.input_blocks.0.0.weight"][0]
    widths = [channels * factor for factor in (1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 4)]
    for index, width in enumerate(widths):
        out.conv(f"control_model.zero_convs.{index}.0", width, width, 1)
    out.conv("control_model.middle_block_out.0", widths[-1], widths[-1], 1)
    for index, (inputs, outputs) in enumerate(itertools.pairwise((3, 16, 16, 32, 32, 96, 96, 256, channels))):
        out.conv(f"control_model.input_hint_block.{2 * index}", inputs, outputs)
    return out


def _half_of_tae(
    out: Layout, side: str, last: tuple[int, int, int], inputs: int, scaling: Iterable[int], blocks: Iterable[int]
) -> None:
    """Put the encoder or the decoder of a tiny autoencoder: its ends, what scales between them, and its blocks."""
    layer, wide, outputs = last
    out.conv(f"{side}.layers.0", inputs, wide)
    out.conv(f"{side}.layers.{layer}", wide, outputs)
    for number in scaling:
        out.put(f"{side}.layers.{number}.weight", wide, wide, 3, 3)
    for number, index in itertools.product(blocks, (0, 2, 4)):
        out.conv(f"{side}.layers.{number}.conv.{index}", wide, wide)


def tae() -> Layout:
    """Return the decoder of a tiny autoencoder."""
    out = Layout()
    _half_of_tae(out, "decoder", (18, 64, 3), 4, (6, 11, 16), (2, 3, 4, 7, 8, 9, 12, 13, 14, 17))
    return out


def whole_tae() -> Layout:
    """Return a tiny autoencoder with its encoder."""
    out = tae()
    _half_of_tae(out, "encoder", (14, 64, 4), 3, (2, 6, 10), (1, 3, 4, 5, 7, 8, 9, 11, 12, 13))
    return out


def taehv() -> Layout:
    """Return the decoder of a tiny autoencoder for Wan 2.1's videos."""
    out = Layout()
    out.conv("decoder.1", 16, 256)
    index, widths = 3, (256, 128, 64, 64)
    for level, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        for _ in range(3):
            for layer, width in ((0, 2 * inputs), (2, inputs), (4, inputs)):
                out.conv(f"decoder.{index}.conv.{layer}", width, inputs)
            index += 1
        out.put(f"decoder.{index + 1}.conv.weight", inputs * (2 if level else 1), inputs, 1, 1)
        out.put(f"decoder.{index + 2}.weight", outputs, inputs, 3, 3)
        index += 3
    out.conv(f"decoder.{index + 1}", 64, 3)
    return out


def upscaler() -> Layout:
    """Return an ESRGAN with one block, of twice the size."""
    out = Layout()
    out.conv("conv_first", 3, 64)
    out.conv("conv_last", 64, 3)
    for name in ("conv_body", "conv_hr", "conv_up1"):
        out.conv(name, 64, 64)
    for block, layer in itertools.product((1, 2, 3), (1, 2, 3, 4, 5)):
        out.conv(f"body.0.rdb{block}.conv{layer}", 64 + 32 * (layer - 1), 32 if layer < 5 else 64)
    return out


PARTS: dict[str, Callable[[], Layout]] = {
    "control": control,
    "tae": tae,
    "whole_tae": whole_tae,
    "taehv": taehv,
    "upscaler": upscaler,
}


def write_parts(folder: Path) -> None:
    """Write each of ``PARTS`` into a folder, as NAME.safetensors."""
    for name, shapes in PARTS.items():
        write_safetensors(folder / f"{name}.safetensors", shapes(), dtype="f16", seed=0, metadata={"format": "pt"})
