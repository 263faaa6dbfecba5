"""JSON schema of a call's options, for servers and forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import engine
from .declare import REQUIRED, Option, declared
from .group import Grouped
from .kinds import Choice, Items, Picture
from .loras import Lora, Loras

Names = Callable[[str], Sequence[str]]


def _limits(option: Option) -> dict[str, Any]:
    """Return the limits of a number."""
    said: dict[str, Any] = {}
    if math.isfinite(option.low):
        said["minimum"] = option.low
    if math.isfinite(option.high):
        said["maximum"] = option.high
    if option.multiple > 1:
        said["multipleOf"] = option.multiple
    return said


def said_of(option: Option) -> str:
    """Return what an option is, for those who write JSON: of a picture not what else Python may pass."""
    opt = option.opt
    return opt.json_doc or (opt.flag_doc if isinstance(option.kind, Picture) else "") or opt.doc


def option_schema(option: Option, names: Names | None) -> dict[str, Any]:
    """Return the schema of one option."""
    kind = option.kind
    if isinstance(kind, Grouped):
        made = object_schema(declared(kind.owner), names)
        made["description"] = said_of(option)
        shorter = [{"type": "string"}] if str in getattr(option.type, "__args__", ()) else []
        shorter += [{"type": "boolean"}] if bool in getattr(option.type, "__args__", ()) else []
        return {"anyOf": [*shorter, made]} if shorter else made
    made = {**kind.schema, "description": said_of(option)}
    if isinstance(kind, Loras):
        made["items"] = {"anyOf": [kind.schema["items"], object_schema(declared(Lora), names)]}
    elif isinstance(kind, Items):
        made["items"] = {**kind.of.schema, **_limits(option)}
    else:
        made |= _limits(option)
    if isinstance(kind, Choice) and names is not None:
        made["enum"] = [name for name in names(option.opt.choices) if name not in option.opt.without]
    if option.opt.pattern:
        made["pattern"] = f"^({option.opt.pattern})$"
    default = option.default
    if default is not None and default is not REQUIRED:
        made["default"] = list(default) if isinstance(default, tuple) else default
    return made


def object_schema(options: Mapping[str, Option], names: Names | None = engine.enum_names) -> dict[str, Any]:
    """Return the schema of an object of options; callbacks, which JSON cannot hold, are left out.

    Args:
        options: the options.
        names: lists the names of one of the engine's enums; None leaves them out, and needs no engine.
    """
    shown = {name: option for name, option in options.items() if option.kind.in_json}
    made: dict[str, Any] = {
        "type": "object",
        "properties": {name: option_schema(option, names) for name, option in shown.items()},
        "additionalProperties": False,
    }
    required = [name for name, option in shown.items() if option.default is REQUIRED]
    return {**made, "required": required} if required else made
