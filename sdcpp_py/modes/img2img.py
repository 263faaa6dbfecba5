"""Pictures from a picture and a text."""

from __future__ import annotations

from typing import Any

from ..engine.fields import IMAGE
from ..options.generation import (
    Conditioning,
    Control,
    Decoding,
    Fitting,
    InitImage,
    Noising,
    Persons,
    Previewing,
    Prompting,
    Sampling,
    Size,
    Watching,
)
from ..pictures import fit
from .inputs import Abilities, Prepared, fit_control, size_from, strength_settings
from .mode import Mode


class Img2ImgOptions(
    Prompting,
    Noising,
    Sampling,
    Size,
    Fitting,
    Conditioning,
    Decoding,
    Control,
    Persons,
    Previewing,
    Watching,
    total=False,
):
    """Every option of :meth:`sdcpp_py.StableDiffusion.img2img` besides the prompt and the picture."""


def prepare(values: dict[str, Any], able: Abilities) -> Prepared:
    """Bring the pictures to one size, the first one's where none is asked for."""
    image = values["image"]
    size = values["width"], values["height"] = size_from(image, values, able, "image")
    values["image"] = fit(image, size, values["resize_mode"], "image")
    fit_control(values, size)
    return Prepared(strength_settings(values))


IMG2IMG = Mode("img2img", "Draw a picture anew.", InitImage, Img2ImgOptions, IMAGE, prepare, takes_size=True)
