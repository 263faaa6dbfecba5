"""Pictures from a text."""

from __future__ import annotations

from ..engine.fields import IMAGE
from ..options.generation import (
    Conditioning,
    Control,
    Decoding,
    Persons,
    Prompting,
    Sampling,
    SecondPass,
    Size,
    Subject,
    Watching,
)
from .mode import Mode


class Txt2ImgOptions(
    Prompting, Sampling, Size, Conditioning, Decoding, SecondPass, Control, Persons, Watching, total=False
):
    """Every option of :meth:`sdcpp_py.StableDiffusion.txt2img` besides the prompt."""


TXT2IMG = Mode("txt2img", "Draw pictures from a text.", Subject, Txt2ImgOptions, IMAGE)
