"""Pictures from a text."""

from __future__ import annotations

from typing import Any

from ..engine.fields import IMAGE
from ..options.generation import (
    Conditioning,
    Control,
    Decoding,
    Fitting,
    Persons,
    Previewing,
    Prompting,
    Sampling,
    SecondPass,
    Size,
    Subject,
    Watching,
)
from .inputs import Abilities, Prepared, aligned, fit_control
from .mode import Mode


class Txt2ImgOptions(
    Prompting,
    Sampling,
    Size,
    Conditioning,
    Decoding,
    SecondPass,
    Control,
    Fitting,
    Persons,
    Previewing,
    Watching,
    total=False,
):
    """Every option of :meth:`sdcpp_py.StableDiffusion.txt2img` besides the prompt."""


def prepare(values: dict[str, Any], able: Abilities) -> Prepared:
    """Bring a control picture to the size that is drawn."""
    fit_control(values, aligned(values, able))
    return Prepared()


TXT2IMG = Mode("txt2img", "Draw pictures from a text.", Subject, Txt2ImgOptions, IMAGE, prepare)
