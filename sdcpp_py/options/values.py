"""What becomes of the values of options: taken from a caller, checked, handed to the engine, noted as used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import engine
from ..errors import ArgumentError
from .checks import show
from .declare import REQUIRED, Option
from .group import Grouped

Options = Mapping[str, Option]


def take(options: Options, values: Mapping[str, Any], defaults: Mapping[str, Any], call: str) -> dict[str, Any]:
    """Return a value for every option, checked; the engine is not asked.

    Args:
        options: the options that may be given.
        values: what was given.
        defaults: what suits a model better than the engine's own defaults, by name of the option.
        call: what was called, for messages.

    Raises:
        TypeError: an option is unknown, or is missing, as for any function of Python.
        ArgumentError: a value is of the wrong type or out of range.
    """
    for name in values:
        if name not in options:
            import difflib

            near = difflib.get_close_matches(name, options, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{hint}")
    taken: dict[str, Any] = {}
    for name, option in options.items():
        value = values.get(name, option.default)
        if value is REQUIRED:
            raise TypeError(f"{call}() needs {name}")
        taken[name] = option.check(defaults.get(name) if value is None and option.optional else value)
    return taken


def resolve(options: Options, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return checked values with names as the engine spells them.

    Raises:
        ArgumentError: the engine knows no such name; the message lists those it knows.
    """
    return {name: options[name].resolve(value) for name, value in values.items()}


def nest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by path as nested mappings, as the engine's structs are nested."""
    nested: dict[str, Any] = {}
    for path, value in fields.items():
        *above, name = path.split(".")
        place = nested
        for each in above:
            place = place.setdefault(each, {})
        if isinstance(value, Mapping) and isinstance(place.get(name), dict):
            place[name].update(value)
        else:
            place[name] = value
    return nested


def engine_fields(options: Options, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the engine's fields take, by path; those that keep the engine's default are left out.

    Raises:
        ModelError: a file that a value names is missing or damaged.
    """
    return {
        options[name].opt.field: options[name].kind.engine_value(name, value, options[name])
        for name, value in values.items()
        if value is not None and options[name].opt.field
    }


def used(options: Options, values: Mapping[str, Any], struct: str) -> dict[str, Any]:
    """Return what is used, as plain values: what was given, and the engine's own where pictures carry it always.

    Args:
        options: the options.
        values: their resolved values.
        struct: the engine's struct that they fill.
    """
    own = engine.fields.defaults(struct)
    found: dict[str, Any] = {}
    for name, option in options.items():
        value = values.get(name)
        if value is None and option.opt.always:
            value = own.get(option.opt.field)
        elif isinstance(option.kind, Grouped) and value is not None:
            prefix = f"{option.opt.field}."
            inner = {path.removeprefix(prefix): each for path, each in own.items() if path.startswith(prefix)}
            value = option.kind.used(value, inner, found)
        elif value is not None:
            # What the engine does not see and nobody asked for is not worth a word.
            asked = option.opt.field or value != option.default
            value = option.kind.plain(value) if option.kind.written and asked else None
        if value is not None and value not in ("", [], ()):
            found[name] = value
    return found


def check_sigmas(levels: tuple[float, ...] | None) -> None:
    """Raise ArgumentError unless noise levels are at least two, descend, and are above 0 but for the last."""
    if levels is None:
        return
    if len(levels) < 2:
        raise ArgumentError(f"sigmas needs at least two noise levels, usually ending in 0, not {show(list(levels))}")
    if list(levels) != sorted(levels, reverse=True):
        raise ArgumentError("sigmas must descend")
    if not levels[-2] > 0:
        raise ArgumentError("sigmas must be above 0, but for the last")
