"""What the tests of streaming share: placements that stream, budgets, and what a model says about its streams."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sdcpp_py
from sdcpp_py import engine

from .placed_model import MODULES, Model, place

GIB = 1 << 30
PLENTY = 1.0  # GiB, more than any tiny model takes


def stream(
    modules: Sequence[str] = MODULES, pin: bool = True, cpu: Sequence[str] = (), overlap: bool = True
) -> list[Any]:
    """Return placements that stream some modules and leave others on the CPU."""
    streamed = {"stream": True, "overlap": overlap}
    return [*({**row, **streamed} for row in place("Loopback0", "CPU", pin, modules)), *place("CPU", modules=cpu)]


# The autoencoder's compute buffer is larger than everything else at this size.
DIFFUSION = stream(["diffusion"], cpu=["te", "vae"])


def steps(count: int, cfg: float = 7.0, **more: object) -> dict[str, Any]:
    """Return options of a picture in so many steps."""
    return {"sample_params": {"sample_steps": count, "guidance": {"txt_cfg": cfg}}, **more}


def draw_on_cpu(checkpoint: Path, **given: Any) -> str:
    """Return the picture that every placement has to draw."""
    with Model(checkpoint, place("CPU")) as model:
        return model.draw(**given)


def budget_bytes(max_vram: float) -> int:
    return int(float(np.float32(max_vram)) * GIB)


def streams(model: Model) -> dict[str, dict[str, Any]]:
    return {row["runner"]: row for row in model.context.streams()}


def named_budget(error: sdcpp_py.DeviceMemoryError) -> float:
    """Return the budget that an error names as the smallest one that works."""
    found = re.findall(r"set max_vram to (\d+\.\d+) or", str(error))
    assert len(found) == 1, error
    return float(found[0])


def smallest_budget(draw: Callable[[float], object]) -> float:
    """Return the smallest budget that a picture can be drawn with.

    Each network can only name what it needs itself; with that, this network is never the one that fails again.
    """
    budget = 1e-5
    while True:
        try:
            draw(budget)
            return budget
        except sdcpp_py.DeviceMemoryError as error:
            assert named_budget(error) > budget
            budget = named_budget(error)


def picture(array: np.ndarray) -> dict[str, Any]:
    """Return the fields of an sd_image_t; the array must outlive it."""
    ffi = engine.library()[0]
    height, width, channels = array.shape
    return {"width": width, "height": height, "channel": channels, "data": ffi.from_buffer("uint8_t[]", array)}


PROMPTS = {"prompt": "a cat", "negative_prompt": "a very long list of what shall by no means be in the picture: dogs"}
