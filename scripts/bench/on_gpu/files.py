"""The checkpoints and LoRAs of the jobs, written by all processors."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

from support.checkpoints import DTYPES as WIDTHS
from support.checkpoints import Shape, checkpoint_shapes, safetensors_header, tensor_pieces

from .jobs import DTYPES
from .saying import say

LORA_ENDS = ("attention.qkv", "attention.out", "attn.qkv", "attn.proj", "to_q", "to_k", "to_v", "to_out.0")
DENOISER = "model.diffusion_model."


def lora_shapes(family: str, small: bool = False, rank: int = 16) -> dict[str, Shape]:
    """Return a LoRA for the attention layers of a family's denoiser, in the names that peft gives them."""
    found = {}
    for name, shape in checkpoint_shapes(family, small).items():
        layer = name.removesuffix(".weight")
        if name.startswith(DENOISER) and len(shape) == 2 and layer.endswith(LORA_ENDS):
            layer = layer.removeprefix("model.")
            found[f"{layer}.lora_A.weight"] = (rank, shape[1])
            found[f"{layer}.lora_B.weight"] = (shape[0], rank)
    return found


def _write_part(part: tuple[Path, int, str, Shape, str]) -> None:
    """Write one tensor at its place in a file."""
    path, offset, name, shape, dtype = part
    with open(path, "r+b", buffering=0) as file:
        file.seek(offset)
        for piece in tensor_pieces(name, shape, dtype, 0):
            file.write(piece)


def write_weights(path: Path, shapes: dict[str, Shape], dtype: str, processes: int) -> None:
    """Write what support.checkpoints.write_safetensors writes, with several processes."""
    header = safetensors_header(shapes, dtype, {"format": "pt"})
    offset, parts = len(header), []
    for name, shape in shapes.items():
        parts.append((path, offset, name, shape, dtype))
        offset += math.prod(shape) * WIDTHS[dtype][1]
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(offset)
    parts.sort(key=lambda part: -math.prod(part[3]))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for _ in pool.imap_unordered(_write_part, parts):
            pass


def make_files(families: Sequence[str], folder: Path, small: bool) -> None:
    """Write the checkpoints and LoRAs that are not there yet."""
    for family in families:
        paths = {
            folder / f"{family}.safetensors": checkpoint_shapes(family, small),
            folder / f"{family}-lora.safetensors": lora_shapes(family, small),
        }
        for path, shapes in paths.items():
            if path.is_file():
                continue
            start = time.perf_counter()
            beside = path.with_suffix(".part")
            write_weights(beside, shapes, DTYPES[family], os.cpu_count() or 1)
            beside.replace(path)
            seconds = time.perf_counter() - start
            say(f"wrote {path.name}, {path.stat().st_size / 1e9:.2f} GB in {seconds:.1f} s")
