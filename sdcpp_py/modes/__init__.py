"""What a user can ask for: a file for each mode, which says the options that it takes. No ffi here."""

from __future__ import annotations

from .convert import CONVERT
from .edit import EDIT, EditOptions
from .img2img import IMG2IMG, Img2ImgOptions
from .inpaint import INPAINT, InpaintOptions
from .inputs import Abilities
from .loading import LOADING
from .mode import Mode
from .request import Request, make_request
from .txt2img import TXT2IMG, Txt2ImgOptions
from .upscale import UPSCALE, UPSCALER

DRAWING = (TXT2IMG, IMG2IMG, INPAINT, EDIT)
"""The modes that draw pictures."""

__all__ = [
    "CONVERT",
    "DRAWING",
    "EDIT",
    "IMG2IMG",
    "INPAINT",
    "LOADING",
    "TXT2IMG",
    "UPSCALE",
    "UPSCALER",
    "Abilities",
    "EditOptions",
    "Img2ImgOptions",
    "InpaintOptions",
    "Mode",
    "Request",
    "Txt2ImgOptions",
    "make_request",
]
