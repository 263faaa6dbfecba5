"""Checks of single values: each returns plain Python, or raises an ArgumentError that begins with a name."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError

_GAPS = dict.fromkeys(map(ord, " _"))
_SHOWN = 60  # characters of a value in a message


def show(value: Any) -> str:
    """Return any value as a short text of one line for a message."""
    try:
        if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
            return f"a number of {value.bit_length()} bits"
        text = " ".join(repr(value).split())
    except Exception:  # whatever a foreign object raises
        # Not type(value).__name__, which is the business of the type's own type.
        text = f"a {type.__dict__['__name__'].__get__(type(value))}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _bounds(low: float, high: float) -> str:
    """Return limits as text, empty when there are none."""
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(high):
        return f" of at least {low:g}"
    return f" from {low:g} to {high:g}"


def check_int(name: str, value: Any, low: int, high: int, hint: str = "", multiple: int = 1) -> int:
    """Return value as int, or raise ArgumentError unless it is an integer in [low, high] and a multiple.

    Args:
        name: what the message calls it.
        value: the value; numpy's integers will do, bool will not.
        low: the least.
        high: the most.
        hint: is added to the message about the limits.
        multiple: what it must be a multiple of.
    """
    try:
        number = None if isinstance(value, bool) or hasattr(value, "__len__") else operator.index(value)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # TypeError, or whatever a foreign object raises
        number = None
    if number is None:
        raise ArgumentError(f"{name} must be an integer, not {show(value)}")
    if not low <= number <= high:
        raise ArgumentError(f"{name} must be from {low} to {high}, not {show(number)}{hint}")
    if number % multiple:
        near = max(number // multiple * multiple or multiple, -(-low // multiple) * multiple)
        raise ArgumentError(f"{name} must be a multiple of {multiple}, not {number}; try {near}")
    return number


def check_float(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return value as float, or raise ArgumentError unless it is a finite number in [low, high].

    Numpy's numbers will do; text and bool will not.
    """
    try:
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None
    except OverflowError:
        number = math.inf
    except (MemoryError, RecursionError):
        raise
    except Exception:  # whatever a foreign number raises
        number = None
    if number is None:
        raise ArgumentError(f"{name} must be a number, not {show(value)}")
    if not math.isfinite(number) or not low <= number <= high:
        raise ArgumentError(f"{name} must be a finite number{_bounds(low, high)}, not {number:g}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """Return value as bool, or raise ArgumentError unless it is True or False, or numpy's."""
    if isinstance(value, bool) or (type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")):
        return bool(value)
    raise ArgumentError(f"{name} must be True or False, not {show(value)}")


def fold(name: str) -> str:
    """Return a name as it is compared: case and the kind of dash do not matter."""
    return name.casefold().replace("-", "_")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return the one of *choices* that value names, or raise ArgumentError with the valid names.

    Case, dashes and spaces do not matter, so that names as web UIs show them are found: ``DPM++ 2M``.
    """
    if isinstance(value, str):
        if value in choices:
            return str(value)
        for choice in choices:
            if fold(choice).translate(_GAPS) == fold(value).translate(_GAPS):
                return choice
    raise ArgumentError(f"{name} {show(value)} is unknown; valid: {', '.join(choices)}")


def check_text(name: str, value: Any) -> str:
    """Return a text for the engine, or raise ArgumentError unless it is valid Unicode without NUL."""
    if not isinstance(value, str):
        raise ArgumentError(f"{name} must be a string, not {show(value)}")
    if "\0" in value:
        raise ArgumentError(f"{name} must not hold a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ArgumentError(f"{name} is not valid Unicode text: {show(value)}") from None
    return str(value)


def check_path(name: str, value: Any) -> Any:
    """Return a path as it was given, or raise ArgumentError unless it is a string, bytes or a path object."""
    if isinstance(value, (str, bytes, os.PathLike)):
        os.fspath(value)
        return value
    raise ArgumentError(f"{name} must be a path, not {show(value)}")
