"""What a user can ask for: a file for each mode, which says the options that it takes. No ffi here."""

from __future__ import annotations

from .convert import CONVERT
from .edit import EDIT, EditOptions
from .img2img import IMG2IMG, Img2ImgOptions
from .inpaint import INPAINT, InpaintOptions
from .inputs import Abilities
from .loading import LOADING
from .mode import Mode
from .request import Request, draw_seed, make_request
from .txt2img import TXT2IMG, Txt2ImgOptions
from .upscale import UPSCALE, UPSCALER
from .video import ANY_MODEL as ANY_VIDEO_MODEL
from .video import IMG2VID, TXT2VID, Img2VidOptions, Txt2VidOptions

DRAWING = (TXT2IMG, IMG2IMG, INPAINT, EDIT)
"""The modes that draw pictures."""
FILMING = (TXT2VID, IMG2VID)
"""The modes that draw videos."""

__all__ = [
    "ANY_VIDEO_MODEL",
    "CONVERT",
    "DRAWING",
    "EDIT",
    "FILMING",
    "IMG2IMG",
    "IMG2VID",
    "INPAINT",
    "LOADING",
    "TXT2IMG",
    "TXT2VID",
    "UPSCALE",
    "UPSCALER",
    "Abilities",
    "EditOptions",
    "Img2ImgOptions",
    "Img2VidOptions",
    "InpaintOptions",
    "Mode",
    "Request",
    "Txt2ImgOptions",
    "Txt2VidOptions",
    "draw_seed",
    "make_request",
]
