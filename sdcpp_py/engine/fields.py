"""The fields of the engine's structs, as its header has them: their paths, their defaults, and how arrays go in."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .library import library, text
from .names import ENUMS

IMAGE = "sd_img_gen_params_t"
"""What one generation of images is asked with."""
VIDEO = "sd_vid_gen_params_t"
"""What one generation of a video is asked with."""
CONTEXT = "sd_ctx_params_t"
"""What a model is loaded with."""


def _walk(struct: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and type of each field, and of those of nested structs instead of the structs."""
    for name, field in struct.fields:
        if field.type.kind == "struct" and field.type.cname != "sd_image_t":
            yield from _walk(field.type, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.type


def _count_of(name: str, names: Sequence[str]) -> str | None:
    """Return the field that holds the length of an array, or None for what is no array."""
    return next((each for each in (f"{name}_count", f"{name[:-1]}_count", f"{name}_size") if each in names), None)


@functools.cache
def paths(kind: str) -> tuple[str, ...]:
    """Return the paths of a struct's fields, such as ``sample_params.eta``; lengths of arrays are not among them."""
    ffi, _ = library()
    found = [path for path, _ in _walk(ffi.typeof(kind))]
    lengths = set()
    for path in found:
        head, _, name = path.rpartition(".")
        siblings = [each.rpartition(".")[2] for each in found if each.rpartition(".")[0] == head]
        if count := _count_of(name, siblings):
            lengths.add(f"{head}.{count}" if head else count)
    return tuple(path for path in found if path not in lengths)


@functools.cache
def defaults(kind: str) -> Mapping[str, Any]:
    """Return the engine's own default of each field, by path; None where it means that the engine chooses.

    Numbers and bools are Python's, names of an enum are text; fields that point somewhere are left out.
    """
    ffi, lib = library()
    params = ffi.new(f"{kind}*")
    getattr(lib, f"{kind.removesuffix('_t')}_init")(params)
    found: dict[str, Any] = {}
    for path, cdata in _walk(ffi.typeof(kind)):
        value = functools.reduce(getattr, path.split("."), params)
        name = path.rpartition(".")[2]
        if cdata.kind == "enum":
            known = ENUMS.get(name)
            end = known and int(getattr(lib, known[1]))
            found[path] = text(getattr(lib, known[2])(value)) if known and value != end else None
        elif cdata.kind == "primitive" and cdata.cname == "float":
            # As it was written: six digits come back unchanged from single precision.
            found[path] = float(f"{value:.6g}") if math.isfinite(value) else None
        elif cdata.kind == "primitive":
            found[path] = bool(value) if cdata.cname == "_Bool" else int(value)
    return found


def set_array(filler: Any, struct: Any, name: str, values: Any) -> None:
    """Point a field to an array of values, and set its length; one picture is no array.

    Args:
        filler: keeps what is pointed to.
        struct: the struct.
        name: its field.
        values: a sequence of plain values, of mappings of a struct's fields, or of pictures; or one picture as an array
            of shape (height, width, channels).
    """
    kind = filler.ffi.typeof(struct)
    fields = dict((kind.item if kind.kind == "pointer" else kind).fields)
    if hasattr(values, "shape"):
        filler.fill(getattr(struct, name), filler.image(values))
        return
    items = [filler.image(each) if hasattr(each, "shape") else each for each in values]
    count = _count_of(name, list(fields))
    if count is None:
        raise TypeError(f"the engine's {name} is no array")
    setattr(struct, name, filler.array(fields[name].type.item.cname, items))
    setattr(struct, count, len(items))
