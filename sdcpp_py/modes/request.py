"""One generation as the engine takes it, checked before the engine sees any of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import engine
from ..errors import ArgumentError
from ..host_memory import host_memory
from ..lora_folder import with_loras
from ..model_files import StrPath
from ..options import MAX_SEED
from ..options.values import check_sigmas, used
from ..reports import GIB
from .inputs import Abilities, Finish, Prepared, check_beside
from .mode import Mode

BYTES_A_PIXEL = 3 + 3 + 4
"""Of each picture of a call: what the engine gives, its copy, and Pillow's own form of it."""
BYTES_A_FRAME_PIXEL = 3 * 4 + 3
"""Of each frame of a video: what the network gives, and the bytes that are made of it."""


@dataclass(frozen=True)
class Request:
    """One generation, ready for the engine.

    Attributes:
        values: each option's value, None where the engine chooses.
        settings: the engine's fields, nested as they are there.
        used: plain values of what is used, by option, as far as it is known before a model draws.
        seeds: of each image.
        finish: what is done to each picture that was drawn; None for nothing.
        warnings: what is done otherwise than asked for, as messages.
        tagged: how many of the LoRAs, from the last one on, are called by tags in the prompt.
    """

    values: dict[str, Any]
    settings: dict[str, Any]
    used: dict[str, Any]
    seeds: list[int]
    finish: Finish | None = None
    warnings: Sequence[str] = ()
    tagged: int = 0

    @property
    def size(self) -> str:
        """The size as asked for, ``WIDTHxHEIGHT``."""
        return f"{self.used['width']}x{self.used['height']}"

    @property
    def largest(self) -> tuple[int, int]:
        """The width and height that the pictures are to have, after a second pass; 1 where that is not known yet."""
        size = (int(self.used.get("width") or 1), int(self.used.get("height") or 1))
        hires = self.used.get("hires")
        if hires is None:
            return size
        if "target_width" in hires:
            return (hires["target_width"], hires["target_height"])
        return (int(size[0] * hires["scale"]), int(size[1] * hires["scale"]))


def check_room(
    count: int, width: int, height: int, otherwise: str = "make width and height smaller", *, video: bool = False
) -> None:
    """Raise ArgumentError for pictures, or the frames of a video, whose pixels alone this machine cannot hold.

    Args:
        count: how many there are.
        width: of each, in pixels.
        height: of each, in pixels.
        otherwise: what helps where one alone is too large.
        video: whether they are frames.
    """
    memory = host_memory()
    one = width * height * (BYTES_A_FRAME_PIXEL if video else BYTES_A_PIXEL)
    if memory is None or count * one <= memory:
        return
    most = memory // one
    what, option = ("frame", "frames") if video else ("picture", "batch_count")
    number = f"{count} {what}s" if count > 1 else f"a {what}"
    hint = f"{option} may be at most {most} here" if most else otherwise
    raise ArgumentError(
        f"{number} of {width}x{height} take {count * one / GIB:.1f} GiB, and this machine has {memory / GIB:.1f} GiB; "
        f"{hint}"
    )


def draw_seed(seed: int, count: int) -> int:
    """Return the first seed of a batch, drawn for -1.

    Raises:
        ArgumentError: the last seed would not fit.
    """
    if seed > MAX_SEED - count + 1:
        raise ArgumentError(f"seed must be from -1 to {MAX_SEED - count + 1}, not {seed}; -1 draws one")
    return int.from_bytes(os.urandom(4), "little") if seed == -1 else seed


def make_request(
    mode: Mode,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    able: Abilities | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
    lora_folder: StrPath | None = None,
) -> Request:
    """Return the request of a mode that draws.

    Args:
        mode: the mode.
        given: options by name.
        defaults: what suits the model better than the engine's own defaults, by option.
        able: what the model is able to do; None before one is loaded, which leaves pictures as they are.
        check: raises for values that do not suit the model, before anything is made of them.
        lora_folder: where LoRAs are found that are called by name; None for nowhere.

    Raises:
        TypeError: an option is unknown or missing.
        ArgumentError: a value is unknown, out of range or of the wrong type, or would do nothing.
        ModelError: a file that it names is missing or damaged.
    """
    if mode.takes_size:
        defaults = {name: value for name, value in (defaults or {}).items() if name not in ("width", "height")}
    values = mode.check(given, defaults)
    prompt = values.get("prompt")
    values, tagged = with_loras(values, lora_folder)
    check_beside(values, mode.declared)
    check_sigmas(values.get("sigmas"))
    if values.get("sigmas"):
        steps = len(values["sigmas"]) - 1
        if given.get("steps") not in (None, steps):
            raise ArgumentError(f"steps has no effect with sigmas: {steps + 1} noise levels are {steps} steps")
        values["steps"] = steps
    count = values.get("batch_count", 1)
    if "seed" in values:
        values["seed"] = draw_seed(values["seed"], count)
    values = mode.resolve(values)
    if check is not None:
        check(values)
    prepared = mode.prepare(values, able) if mode.prepare is not None and able is not None else Prepared()
    noted = used(mode.declared, values, mode.struct)
    if tagged:
        noted["prompt"] = prompt  # with its tags, as A1111 has it
    if values.get("sigmas"):
        noted.pop("scheduler", None)
    if values.get("control_image") is not None:
        option = mode.declared["control_strength"]
        noted.setdefault("control_strength", engine.fields.defaults(mode.struct)[option.opt.field])
    seeds = [values.get("seed", 0) + index for index in range(count)]
    request = Request(values, dict(prepared.settings), noted, seeds, prepared.finish, prepared.warnings, tagged)
    frames = values.get("frames")
    check_room(frames or count, *request.largest, video=frames is not None)
    return replace(request, settings={**mode.fields(values), **prepared.settings})
