"""The engine's structs: filled from mappings, and read back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .fields import set_array
from .library import library
from .names import ENUMS


class Filler:
    """Fills engine structs by field name and keeps everything alive that they point to."""

    def __init__(self) -> None:
        self.ffi, self.lib = library()
        self.alive: list[Any] = []

    def keep(self, *arguments: Any) -> Any:
        """Return a new C object that lives as long as this filler."""
        made = self.ffi.new(*arguments)
        self.alive.append(made)
        return made

    def value(self, name: str, value: Any) -> Any:
        """Return a Python value as its struct field takes it."""
        if isinstance(value, (str, bytes)):
            if name in ENUMS:
                return getattr(self.lib, ENUMS[name][0])(os.fsencode(value))
            return self.keep("char[]", value if isinstance(value, bytes) else value.encode("utf-8"))
        return value

    def fill(self, struct: Any, values: Mapping[str, Any]) -> None:
        """Set the fields named by *values*; a nested mapping fills a nested struct, a sequence an array."""
        for name, value in values.items():
            if isinstance(value, Mapping):
                self.fill(getattr(struct, name), value)
            elif isinstance(value, (list, tuple)) or hasattr(value, "shape"):
                set_array(self, struct, name, value)
            else:
                setattr(struct, name, self.value(name, value))

    def array(self, kind: str, values: Sequence[Any]) -> Any:
        """Return a C array of plain values, or of structs filled from mappings."""
        made = self.keep(f"{kind}[]", max(1, len(values)))
        for index, value in enumerate(values):
            if isinstance(value, Mapping):
                self.fill(made[index], value)
            else:
                made[index] = value
        return made

    def image(self, picture: Any) -> dict[str, Any]:
        """Return the fields of an sd_image_t for a contiguous uint8 array of shape (height, width, channels)."""
        height, width, channels = picture.shape
        self.alive.append(picture)
        pointer = self.ffi.cast("uint8_t*", self.ffi.from_buffer(picture))
        return {"width": width, "height": height, "channel": channels, "data": pointer}

    def context_params(self, options: Mapping[str, Any]) -> Any:
        """Return the engine's context parameters with some fields set."""
        params = self.keep("sd_ctx_params_t*")
        self.lib.sd_ctx_params_init(params)
        self.fill(params, options)
        return params


def filled(filler: Filler, kind: str, options: Mapping[str, Any]) -> Any:
    """Return one of our structs with some fields set, the others as the engine has them.

    Args:
        filler: keeps it and what it points to.
        kind: its name without ``_t``.
        options: the fields.
    """
    params = filler.keep(f"{kind}_t*")
    getattr(filler.lib, f"{kind}_init")(params)
    filler.fill(params, options)
    return params
