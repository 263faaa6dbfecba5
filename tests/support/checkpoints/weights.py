"""Seeded random weights that are the same bytes on every platform."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .layout import Shape

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1_048_573
"""Length of the block of random numbers that all tensors are cut from: prime, so that no tensor row repeats
another one before 2**20 rows, and small, so that one scaled copy per distinct spread fits in memory."""

DTYPES = {"f16": ("F16", 2), "f32": ("F32", 4), "bf16": ("BF16", 2)}


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
    if name.endswith(("vision_model.embeddings.class_embedding", "emb_pos", "modulation")):
        return 0.0, 0.5
    if name.endswith(
        ("token_embedding.weight", "position_embedding.weight", "positional_embedding", "embed_tokens.weight")
    ):
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
    import numpy as np

    bits = np.random.PCG64(seed).random_raw(BLOCK)
    total = np.full(BLOCK, -2 * 65535, dtype=np.int32)
    for shift in (0, 16, 32, 48):
        total += ((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int32)
    return total.astype(np.float32) * np.float32(1.0 / math.sqrt((65536**2 - 1) / 3))


@functools.lru_cache(maxsize=48)
def _value_block(seed: int, mean: float, spread: float, dtype: str) -> bytes:
    """Return the random block with a mean and a spread, encoded little-endian in the file's dtype."""
    import numpy as np

    values = _normal_block(seed) * np.float32(spread) + np.float32(mean)
    if dtype == "f16":
        return values.astype("<f2").tobytes()
    if dtype == "f32":
        return values.astype("<f4").tobytes()
    bits = values.view(np.uint32)  # bf16: the upper half, rounded to nearest, ties to even
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def tensor_pieces(name: str, shape: Shape, dtype: str, seed: int) -> Iterable[memoryview]:
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
