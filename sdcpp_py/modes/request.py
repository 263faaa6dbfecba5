"""One generation as the engine takes it, checked before the engine sees any of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import engine
from ..errors import ArgumentError
from ..options import MAX_SEED
from ..options.values import check_sigmas, used
from .inputs import Abilities, Finish, Prepared, check_control
from .mode import Mode


@dataclass(frozen=True)
class Request:
    """One generation, ready for the engine.

    Attributes:
        values: each option's value, None where the engine chooses.
        settings: the engine's fields, nested as they are there.
        used: plain values of what is used, by option, as far as it is known before a model draws.
        seeds: of each image.
        finish: what is done to each picture that was drawn; None for nothing.
    """

    values: dict[str, Any]
    settings: dict[str, Any]
    used: dict[str, Any]
    seeds: list[int]
    finish: Finish | None = None

    @property
    def size(self) -> str:
        """The size as asked for, ``WIDTHxHEIGHT``."""
        return f"{self.used['width']}x{self.used['height']}"


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
) -> Request:
    """Return the request of a mode that draws.

    Args:
        mode: the mode.
        given: options by name.
        defaults: what suits the model better than the engine's own defaults, by option.
        able: what the model is able to do; None before one is loaded, which leaves pictures as they are.
        check: raises for values that do not suit the model, before anything is made of them.

    Raises:
        TypeError: an option is unknown or missing.
        ArgumentError: a value is unknown, out of range or of the wrong type, or would do nothing.
        ModelError: a file that it names is missing or damaged.
    """
    if mode.takes_size:
        defaults = {name: value for name, value in (defaults or {}).items() if name not in ("width", "height")}
    values = mode.check(given, defaults)
    check_control(values, mode.declared)
    check_sigmas(values.get("sigmas"))
    if values.get("sigmas"):
        values["steps"] = len(values["sigmas"]) - 1
    count = values.get("batch_count", 1)
    if "seed" in values:
        values["seed"] = draw_seed(values["seed"], count)
    values = mode.resolve(values)
    if check is not None:
        check(values)
    prepared = mode.prepare(values, able) if mode.prepare is not None and able is not None else Prepared()
    noted = used(mode.declared, values, mode.struct)
    if values.get("sigmas"):
        noted.pop("scheduler", None)
    if values.get("control_image") is not None:
        option = mode.declared["control_strength"]
        noted.setdefault("control_strength", engine.fields.defaults(mode.struct)[option.opt.field])
    seeds = [values.get("seed", 0) + index for index in range(count)]
    return Request(values, {**mode.fields(values), **prepared.settings}, noted, seeds, prepared.finish)
