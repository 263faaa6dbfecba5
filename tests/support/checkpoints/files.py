"""Writing checkpoints and LoRAs as safetensors files."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

from .families import checkpoint_shapes
from .layout import Shape
from .lora import lora_shapes
from .weights import DTYPES, tensor_pieces


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
        for piece in tensor_pieces(name, shape, dtype, seed):
            file.write(piece)


def write_checkpoint(
    family: str, out: str | os.PathLike[str], *, tiny: bool = False, dtype: str = "f16", seed: int = 0
) -> dict[str, Path]:
    """Write a family's checkpoint.

    Args:
        family: one of ``FAMILIES`` or ``VIDEO_FAMILIES``.
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
