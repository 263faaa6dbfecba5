"""Our kernels for CUDA against ggml's own, both measured by the CPU, for shapes that nothing fits into."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from sdcpp_py import engine
from sdcpp_py.engine import Run
from support.children import in_child

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no NVIDIA GPU"),
]
KINDS = ("convolution", "block", "attention_in", "feed_forward", "rotation", "attention", "attending")
TYPES = {"f32": 0, "f16": 1, "bf16": 30}  # ggml's numbers


@dataclass(frozen=True)
class Part:
    """A part of a network; see tests/native/cuda_probe.cpp for what each size is."""

    kind: str
    width: int
    height: int
    channels: int
    filters: int
    batch: int = 1
    taps: int = 3
    stride: int = 1
    pad: int = 1
    dilation: int = 1
    type: str = "f16"
    scale: float = 1.0


class Case(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("kind", "width", "height", "channels", "filters", "batch")],
        *[(name, ctypes.c_int64) for name in ("taps", "stride", "pad", "dilation", "type", "fast")],
        ("scale", ctypes.c_float),
    ]


def compute(part: Part, device: str, *, fast: bool, times: int = 1) -> tuple[NDArray[np.float32], float]:
    """Return what a device makes of a part under a policy, and the seconds that it took."""
    ffi, lib = engine.library()
    probe = ctypes.CDLL(str(engine.versions()["library"])).sdcpp_probe_part
    numbers = (part.width, part.height, part.channels, part.filters, part.batch, part.taps, part.stride, part.pad)
    case = Case(KINDS.index(part.kind), *numbers, part.dilation, TYPES[part.type], fast, part.scale)
    size = max(part.channels, part.filters) * part.width * max(part.height, 8) * part.batch * 8
    result = np.full(size, np.nan, np.float32)
    count, seconds = ctypes.c_int64(result.size), ctypes.c_double()
    with Run() as run:
        status = probe(
            ctypes.c_void_p(int(ffi.cast("uintptr_t", run.native))),
            device.encode(),
            ctypes.byref(case),
            ctypes.c_int64(times),
            ctypes.c_void_p(result.ctypes.data),
            ctypes.byref(count),
            ctypes.byref(seconds),
        )
        assert status == lib.SDCPP_OK, (part, device, fast)
    return result[: count.value].copy(), seconds.value


def errors(part: Part) -> tuple[float, float]:
    """Return how far our kernels and ggml's are from the CPU, relative to the values."""
    exact, _ = compute(part, "CPU", fast=True)
    ours, _ = compute(part, "CUDA0", fast=True)
    ggml, _ = compute(part, "CUDA0", fast=False)
    assert np.isfinite(ours).all(), part
    again, _ = compute(part, "CUDA0", fast=True)
    assert np.array_equal(ours, again), part
    return tuple(float(np.linalg.norm(each - exact) / np.linalg.norm(exact)) for each in (ours, ggml))  # type: ignore[return-value]


CONVOLUTIONS = [
    Part("convolution", 33, 17, 5, 7),
    Part("convolution", 64, 64, 320, 320),
    Part("convolution", 32, 32, 96, 64, stride=2),
    Part("convolution", 31, 29, 64, 130, batch=2, taps=1, pad=0),
    Part("convolution", 40, 24, 33, 40, stride=2, pad=0, dilation=2, type="f32"),
    Part("convolution", 300, 200, 128, 3, scale=1 / 32),
    Part("convolution", 8, 8, 1280, 1280),
    Part("convolution", 700, 600, 256, 16, taps=3, stride=1, pad=1),  # staged in several parts
]
BLOCKS = [
    Part("block", 64, 48, 64, 64),
    Part("block", 33, 31, 32, 96, batch=2),
    Part("block", 512, 512, 128, 128),  # more than is staged at once
    Part("block", 40, 36, 128, 64),  # what goes round it lies in its input
    Part("block", 700, 300, 256, 128),  # the same, in several parts
    Part("block", 48, 40, 256, 128, scale=1 / 32),  # what is normed is not scaled, what is doubled is before
]
TRANSFORMERS = [
    Part(kind, 77, 1, 64 * 5, 96 * 4, batch=batch, type=kind_of_weights)
    for kind in ("attention_in", "feed_forward")
    for batch, kind_of_weights in ((1, "f16"), (2, "bf16"))
] + [Part("attention_in", 300, 1, 1280, 320), Part("feed_forward", 50, 1, 1026, 33)]
ROTATIONS = [Part("rotation", 37, 1, 128, 5, batch=2), Part("rotation", 64, 1, 64, 3, scale=1 / 128)]
ATTENTIONS = [
    Part("attention", queries, keys, depth, heads, scale=scale)
    for queries, keys, depth, heads, scale in (
        (64, 64, 40, 8, 1.0),
        (100, 77, 64, 5, 1.0),
        (70, 90, 80, 2, 1.0),
        (130, 130, 128, 3, 1 / 128),
        (64, 64, 160, 2, 1.0),
        (200, 70, 152, 3, 1.0),
    )
] + [
    Part("attending", tokens, of_context, depth, heads, batch, type=kind_of_weights)
    for tokens, of_context, depth, heads, batch, kind_of_weights in (
        (300, 0, 64, 5, 1, "f16"),
        (130, 77, 40, 8, 2, "f16"),
        (256, 77, 160, 2, 1, "f16"),
        (100, 0, 80, 4, 1, "bf16"),
        (65, 33, 72, 3, 1, "f16"),
    )
]


@in_child
def test_parts_err_no_more_than_ggmls() -> None:
    for part in CONVOLUTIONS + BLOCKS + TRANSFORMERS + ATTENTIONS:
        ours, ggml = errors(part)
        # ggml's attention rounds to TF32, with as many bits as f16, where cuBLAS has such a kernel for the shape.
        least = 4.2e-4 if part.kind in ("attention", "attending") else 4e-7
        assert ours <= max(1.1 * ggml, least), (part, ours, ggml)


@in_child
def test_what_is_not_a_product_is_the_same_bit_by_bit() -> None:
    for part in ROTATIONS:
        ours, _ = compute(part, "CUDA0", fast=True)
        ggml, _ = compute(part, "CUDA0", fast=False)
        assert np.array_equal(ours, ggml), part
