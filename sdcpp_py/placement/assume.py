"""Reading the description of a machine: ``gpu=12GiB,ram=16GiB,bus=12GB/s``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ArgumentError
from .machine import BUS_RATE, DISK_RATE, GPU_FLOPS, Described

Assumed = str | Mapping[str, Any]
"""``KEY=VALUE,...``, or a mapping of key to value."""

_UNITS = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_SIZE = re.compile(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]i?)b", re.IGNORECASE)
_RATE = re.compile(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]i?)b(?:/s|ps)", re.IGNORECASE)
_FLOPS = re.compile(r"([0-9.]+(?:e[0-9]+)?)\s*([gt])flops?(?:/s)?", re.IGNORECASE)
_KEYS = {
    "gpu": "memory of a GPU such as 12GiB, 8GiB+8GiB for two, or none",
    "ram": "host memory such as 16GiB",
    "bus": f"rate of copies to a GPU such as 12GB/s (default {BUS_RATE / 1e9:g}GB/s)",
    "compute": f"speed of a GPU such as 40TFLOPS (default {GPU_FLOPS / 1e12:g}TFLOPS)",
    "disk": f"rate of the disk with the model's files such as 2GB/s (default {DISK_RATE / 1e9:g}GB/s)",
}
_LEAST, _MOST = 1 << 20, 1 << 50


def parse_assume(given: Assumed) -> Described:
    """Return the machine that a caller describes.

    Args:
        given: ``gpu=SIZE[+SIZE...]``, which may be repeated, ``ram=SIZE``, ``bus=RATE``, ``disk=RATE`` and
            ``compute=SPEED``, divided by commas, or a mapping of these. Sizes are in GiB, GB, MiB, ...; rates in GB/s,
            ...; speeds in TFLOPS, ...

    Raises:
        ArgumentError: a key is unknown or given twice, or a value has no meaning; the message lists what is valid.
    """
    if isinstance(given, str):
        pairs = [part.partition("=") for part in given.split(",") if part.strip()]
        items: Sequence[tuple[str, Any]] = [(key, value if equals else "") for key, equals, value in pairs]
    elif isinstance(given, Mapping):
        items = [(str(key), value) for key, value in given.items()]
    else:
        raise ArgumentError(f"assume must be a text such as gpu=12GiB,ram=16GiB or a mapping, not {given!r}")
    if not items:
        raise ArgumentError(f"assume describes nothing; valid: {_valid()}")
    gpus: list[int] = []
    found: dict[str, Any] = {}
    for key, value in items:
        name = key.strip().lower()
        if name not in _KEYS:
            raise ArgumentError(f"assume: {key.strip()!r} is unknown; valid: {_valid()}")
        if name in found and name != "gpu":
            raise ArgumentError(f"assume: {name} is given twice")
        text = str(value).strip()
        found[name] = text
        if name == "gpu" and text.lower() != "none":
            parts = value if isinstance(value, (list, tuple)) else text.split("+")
            gpus += [int(_number(name, str(part).strip(), _SIZE)) for part in parts]
    return Described(
        gpus=tuple(gpus),
        ram=int(_number("ram", found["ram"], _SIZE)) if "ram" in found else None,
        bus=_number("bus", found["bus"], _RATE) if "bus" in found else BUS_RATE,
        compute=_number("compute", found["compute"], _FLOPS) if "compute" in found else GPU_FLOPS,
        disk=_number("disk", found["disk"], _RATE) if "disk" in found else DISK_RATE,
        text=",".join(f"{key}={value}" for key, value in items),
    )


def _valid() -> str:
    return "; ".join(f"{key}: {what}" for key, what in _KEYS.items())


def _number(key: str, text: str, pattern: re.Pattern[str]) -> float:
    """Return a number with its unit, in bytes, bytes a second or operations a second.

    Raises:
        ArgumentError: it is none, or none that a machine has.
    """
    match = pattern.fullmatch(text)
    try:
        number = float(match[1]) * _UNITS[match[2].lower()] if match else math.nan
    except ValueError:
        number = math.nan
    if not _LEAST <= number <= _MOST:
        raise ArgumentError(f"assume: {key}={text} has no meaning; {key} is the {_KEYS[key]}")
    return number
