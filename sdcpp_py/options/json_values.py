"""The values of options as JSON has them: what in them is read from elsewhere, and the objects that they stand for.

JSON holds pictures as text, groups as objects, and files by name. :func:`replaced` gives whoever reads it each picture
and each file; :func:`built` makes of the rest what the calls take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ArgumentError
from .checks import show
from .declare import REQUIRED, Option, declared
from .group import Grouped
from .kinds import File, Folder, Picture, Pictures, check_count
from .loras import Lora, Loras

Options = Mapping[str, Option]
Leaf = Callable[[str, Any], Any]
"""Takes what messages call a value, and the value; returns what stands in its place."""


def _lora(name: str, value: Any, file: Leaf) -> dict[str, Any]:
    """Return a LoRA as an object, of its name or of an object."""
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{name} must be a name or an object with path and multiplier, not {show(value)}")
    _check_names(value, declared(Lora), name)
    return {**value, "path": file(f"{name}.path", value["path"])}


def _check_names(values: Mapping[str, Any], options: Options, name: str) -> None:
    """Raise ArgumentError for fields of a group that are unknown or missing."""
    for key in values:
        if key not in options:
            raise ArgumentError(f"{name} has no {show(key)}; it has {', '.join(options)}")
    for key, option in options.items():
        if option.default is REQUIRED and key not in values:
            raise ArgumentError(f"{name} needs {key}")


def _replaced(option: Option, name: str, value: Any, picture: Leaf, file: Leaf) -> Any:
    """Return one value with its pictures and files replaced."""
    kind = option.kind
    if value is None:
        return None
    if isinstance(value, (list, Mapping)):
        check_count(name, value)  # before a file is looked for, or a picture opened, for each
    if isinstance(kind, Loras):
        items: Sequence[Any]
        if isinstance(value, Mapping):
            items = [{"path": path, "multiplier": multiplier} for path, multiplier in value.items()]
        else:
            items = [value] if isinstance(value, str) else value
        if not isinstance(items, Sequence):
            raise ArgumentError(f"{name} must be a list of names and objects, not {show(value)}")
        return [_lora(f"{name}[{index}]", each, file) for index, each in enumerate(items)]
    if isinstance(kind, Pictures):
        items = value if isinstance(value, list) else [value]
        return [picture(f"{name}[{index}]", each) for index, each in enumerate(items)]
    if isinstance(kind, Picture):
        return picture(name, value)
    if isinstance(kind, (File, Folder)):
        return file(name, value)
    if isinstance(kind, Grouped) and isinstance(value, Mapping):
        _check_names(value, declared(kind.owner), name)
        return replaced(declared(kind.owner), value, picture, file, f"{name}.")
    return value


def replaced(
    options: Options, values: Mapping[str, Any], picture: Leaf, file: Leaf, prefix: str = ""
) -> dict[str, Any]:
    """Return values, still as JSON has them, with each picture and each file replaced.

    Args:
        options: the options that may be given.
        values: by name.
        picture: makes something of a picture.
        file: makes something of the name of a file.
        prefix: is put before names in messages.

    Raises:
        ArgumentError: an option is unknown, or a list or an object is none.
    """
    made = {}
    for name, value in values.items():
        if name not in options or not options[name].kind.in_json:
            import difflib

            near = difflib.get_close_matches(name, options, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ArgumentError(f"{prefix}{show(name)} is no option here{hint}")
        made[name] = _replaced(options[name], f"{prefix}{name}", value, picture, file)
    return made


def holds_pictures(option: Option) -> bool:
    """Tell whether an option takes pictures, itself or in a field."""
    if isinstance(option.kind, Grouped):
        return any(map(holds_pictures, declared(option.kind.owner).values()))
    return isinstance(option.kind, Picture)


def built(options: Options, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as calls take them: objects of groups and LoRAs in place of JSON's objects.

    Args:
        options: the options.
        values: as :func:`replaced` returns them.

    Raises:
        ArgumentError: a field of a group is out of range or of the wrong type.
    """
    made = {}
    for name, value in values.items():
        kind = options[name].kind
        if isinstance(kind, Grouped) and isinstance(value, Mapping):
            value = kind.owner(**built(declared(kind.owner), value))
        elif isinstance(kind, Loras) and value is not None:
            value = [Lora(**each) for each in value]
        made[name] = value
    return made
