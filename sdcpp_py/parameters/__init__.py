"""The parameters that a picture carries, read back as options: ours, AUTOMATIC1111's, ComfyUI's and InvokeAI's."""

from __future__ import annotations

import io
import logging
import os
from typing import Any

from ..errors import ArgumentError
from ..metadata import picture_text
from ..model_files import show_path
from ..pictures import reading
from ..video_files import is_film, read_film
from .comfyui import read_graph
from .found import Parameters
from .invokeai import read_invokeai
from .plain_text import read_text

__all__ = ["Parameters", "parameters_of", "read_parameters"]

log = logging.getLogger("sdcpp_py")

_EXPECTED = "a Pillow image, a path, the bytes of a file or a binary file object"
# Keys of PNG text, and who reads what is under them; ComfyUI's workflow is for its page and names no inputs.
_KEYS = (("invokeai_metadata", read_invokeai), ("sd-metadata", read_invokeai), ("prompt", read_graph))


def parameters_of(image: Any) -> Parameters | None:
    """Return the parameters that a picture which Pillow has opened carries; None for none that are known.

    Args:
        image: the picture.
    """
    text = picture_text(image)
    if text is not None:
        found = read_text(text)
        if found is not None:
            return found
    for key, read in _KEYS:
        kept = image.info.get(key)
        if isinstance(kept, str) and (found := read(kept)) is not None:
            return found
    return None


def _start_of(file: Any, what: str) -> bytes:
    """Return the first bytes of a file, which stays where it was."""
    with reading(what):
        if isinstance(file, (str, os.PathLike)):
            with open(file, "rb") as opened:
                return opened.read(12)
        begin = file.tell()
        start: bytes = file.read(12)
        file.seek(begin)
        return start


def read_parameters(picture: Any) -> Parameters:
    """Return the options that a picture was drawn with: ``sd.txt2img(**read_parameters("cat.png"))`` draws it again.

    What is read: the text of this package and of AUTOMATIC1111's web UI (PNG's ``parameters``, the comment of EXIF in
    JPEG, WebP and AVIF, the comment of a GIF and, with PyAV, of an MP4 or WebM), ComfyUI's graph under PNG's
    ``prompt``, and InvokeAI's ``invokeai_metadata`` and ``sd-metadata``. Samplers and schedulers get our names. What
    has no equal here is in ``unmapped``, and a warning in the log of ``sdcpp_py`` names it.

    Args:
        picture: a Pillow image, a path, the bytes of a file or a binary file object.

    Returns:
        The options by name, the prompt among them, with what else the picture says.

    Raises:
        ArgumentError: it is no picture, or carries no parameters that are known.
    """
    import PIL.Image

    what = "picture"
    if isinstance(picture, PIL.Image.Image):
        with reading(what):
            found = parameters_of(picture)
    else:
        if isinstance(picture, (str, os.PathLike)):
            what = f"picture {show_path(picture)}"
        elif isinstance(picture, (bytes, bytearray, memoryview)):
            picture = io.BytesIO(picture)
        elif not callable(getattr(picture, "read", None)):
            from ..options.checks import show

            raise ArgumentError(f"picture must be {_EXPECTED}, not {show(picture)}")
        if isinstance(picture, (str, os.PathLike)) and ("\0" in os.fspath(picture) or not os.path.isfile(picture)):
            raise ArgumentError(f"{what}: there is no such file")
        if is_film(_start_of(picture, what)):
            text = read_film(picture, what).comment
            found = read_text(text) if text else None
        else:
            with reading(what), PIL.Image.open(picture) as image:
                found = parameters_of(image)
                if found is None and image.format == "PNG":
                    image.load()  # text may stand behind the pixels
                    found = parameters_of(image)
    if found is None:
        raise ArgumentError(
            f"{what} carries no parameters of this package, AUTOMATIC1111's web UI, ComfyUI or InvokeAI"
        )
    if found.unmapped:
        told = "; ".join(f"{name}: {text}" for name, text in found.unmapped.items())
        log.warning("%s: no option here is the same as %s", what, told)
    return found
