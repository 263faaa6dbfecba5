"""Weights that stay in the model's files: where that is possible, and how much of them host memory keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..devices import Device

DISK = "disk"
"""What ``params_backend`` calls the model's files."""
RING_BYTES = 64 << 20
"""Host memory that weights on disk are read into, for each device (``native/sdcpp/disk/read_ahead.h``)."""


def disk_obstacle(runtime: Device) -> str | None:
    """Return why a module that a device computes cannot have its weights on disk, or None when it can.

    Any file will do: what is not stored as it is computed with becomes that as it is read, row by row; packed, scaled
    and strided tensors are read whole and kept.
    """
    if runtime.kind == "cpu":
        return (
            "weights on disk are streamed to another device, and the CPU reads weights where they lie: leave it out of "
            "params_backend where the CPU computes"
        )
    return None


def kept_of(modules: Sequence[str], weights: Mapping[str, int], affordable: int) -> dict[str, int]:
    """Return how many bytes of the modules' weights on disk host memory keeps, so that these are read once.

    Args:
        modules: those on disk, what is read most often first.
        weights: module -> bytes.
        affordable: bytes that host memory has left for it.
    """
    kept = {}
    left = max(0, affordable - RING_BYTES)
    for module in modules:
        kept[module] = min(weights.get(module, 0), left)
        left -= kept[module]
    return kept
