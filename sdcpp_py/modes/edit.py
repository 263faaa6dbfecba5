"""Pictures from reference pictures and a text that says what to make of them."""

from __future__ import annotations

import math
from typing import Any

from PIL.Image import Image, Resampling

from ..engine.fields import IMAGE
from ..errors import ArgumentError
from ..options import MAX_SIDE
from ..options.generation import (
    Conditioning,
    Decoding,
    Previewing,
    Prompting,
    Referencing,
    RefImages,
    Sampling,
    Size,
    Watching,
)
from .inputs import Abilities, Prepared, aligned
from .mode import Mode

MEGAPIXEL = 1024 * 1024
"""The largest area that references are brought to, and that is drawn when no size is asked for."""


class EditOptions(Prompting, Referencing, Sampling, Size, Conditioning, Decoding, Previewing, Watching, total=False):
    """Every option of :meth:`sdcpp_py.StableDiffusion.edit` besides the prompt and the pictures."""


def with_area(image: Image, area: int, multiple: int) -> tuple[int, int]:
    """Return the size of an area in a picture's proportions, sides a multiple of something and none too long."""
    scale = math.sqrt(area / (image.width * image.height))
    most = MAX_SIDE // multiple
    wide, high = (min(most, max(1, round(side * scale / multiple))) * multiple for side in image.size)
    return wide, high


def prepare(values: dict[str, Any], able: Abilities) -> Prepared:
    """Say the size, the first picture's up to a megapixel where none is asked for, and resize the references."""
    first = values["images"][0]
    if not values["width"] and not values["height"]:
        area = min(MEGAPIXEL, first.width * first.height)
        values["width"], values["height"] = with_area(first, area, able.size_multiple)
    values["width"] = values["width"] or values["height"]
    values["height"] = values["height"] or values["width"]
    size = values["width"], values["height"] = aligned(values, able)
    multiple = able.reference_multiple
    if values["auto_resize"]:
        area = min(MEGAPIXEL, size[0] * size[1])
        sizes = [with_area(each, area, multiple) for each in values["images"]]
        pairs = zip(values["images"], sizes, strict=True)
        values["images"] = [a if a.size == b else a.resize(b, Resampling.LANCZOS) for a, b in pairs]
    for index, each in enumerate(values["images"]):
        if each.width % multiple or each.height % multiple:
            raise ArgumentError(
                f"images[{index}] is {each.width}x{each.height}: without auto_resize its sides must be multiples of "
                f"{multiple}"
            )
    return Prepared({"auto_resize_ref_image": False})


EDIT = Mode("edit", "Make something of reference pictures.", RefImages, EditOptions, IMAGE, prepare, takes_size=True)
