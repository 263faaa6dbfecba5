"""How much of a device's memory the model may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ArgumentError
from ..host_memory import NO_LIMIT
from ..options import check_float
from ..reports import GIB, MIB, show_bytes

if TYPE_CHECKING:
    from ..devices import Device


@dataclass(frozen=True)
class DeviceBudget:
    """How much memory of one device the model may use.

    Attributes:
        device: name of the device.
        bytes: the budget; where it is measured, what it is now, since it is measured again for each picture.
        detail: how that number comes about.
    """

    device: str
    bytes: int
    detail: str


def check_max_vram(max_vram: float | None) -> float | None:
    """Return the budget of device memory in GiB, or raise ArgumentError unless it has a meaning.

    Args:
        max_vram: GiB; negative is what stays free of what is free now; None when none is given.
    """
    if max_vram is None:
        return None
    number = check_float("max_vram", max_vram, -NO_LIMIT / GIB, NO_LIMIT / GIB)
    if abs(number) * MIB < 1.0:  # less than 1 KiB: the engine takes 0 for "not given"
        raise ArgumentError(
            f"max_vram {number:g} leaves nothing: give a budget in GiB, a negative number for what is to stay free, or "
            "none at all"
        )
    return number


def device_budget(device: Device, max_vram: float | None, stream_layers: bool) -> DeviceBudget:
    """Return what the engine may use of a device, by the engine's own rule.

    Args:
        device: the device as it is now.
        max_vram: as check_max_vram returned it.
        stream_layers: whether copies and computations overlap.

    Raises:
        ArgumentError: it is nothing.
    """
    turns = "" if stream_layers else "; copies and computations take turns: stream_layers lets them overlap"
    total, free = device.memory_total, device.memory_free
    if max_vram is not None and max_vram > 0.0:
        size = int(max_vram * GIB)
        detail = "given as max_vram"
        if size > total > 0:
            detail += f", more than the {show_bytes(total)} that it has"
        elif size > free > 0:
            detail += f", more than the {show_bytes(free)} that are free now"
        return DeviceBudget(device.name, size, detail + turns)
    if max_vram is None:
        reserve = device.memory_reserve
        detail = f"{show_bytes(free)} free now - {show_bytes(reserve)} reserve"
    else:
        reserve = int(-max_vram * GIB)
        detail = f"{show_bytes(free)} free now - {show_bytes(reserve)} given as max_vram"
    if free <= reserve:
        raise ArgumentError(f"nothing of {device.name} may be used ({detail}); set max_vram to a budget in GiB")
    return DeviceBudget(device.name, free - reserve, detail + turns)
