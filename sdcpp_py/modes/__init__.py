"""What a user can ask for: a file for each mode, which says the options that it takes. No ffi here."""

from __future__ import annotations

from .loading import LOADING
from .mode import Mode
from .request import Request, make_request
from .txt2img import TXT2IMG, Txt2ImgOptions

__all__ = ["LOADING", "TXT2IMG", "Mode", "Request", "Txt2ImgOptions", "make_request"]
