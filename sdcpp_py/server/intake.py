"""What a client asks for, checked before it is a job: options, pictures as text or uploads, names of files."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import PIL.Image

from ..errors import ArgumentError
from ..lora_folder import take_tags
from ..modes import IMG2IMG, INPAINT, UPSCALE
from ..options.checks import show
from ..options.declare import REQUIRED
from ..options.json_values import built, holds_pictures, replaced
from .jobs import RefusedError, Request
from .model_list import LORA_FOLDER, MODES, ServedModel, formats_of, named_file

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
"""Of pictures that go in: those that browsers show, and no decoder besides."""
_SIZED_BY_PICTURE = (IMG2IMG.name, INPAINT.name)
_LEAST_SIDE = 512
"""Of what models draw where no size is asked for, but the embedded one, which says its own."""
_DATA_URL = re.compile(r"data:[\w.+/-]*(;[\w=.-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Bounds:
    """What requests may hold.

    Attributes:
        upload: bytes of one request.
        pixels: of one picture that goes in, and of all that one job draws.
    """

    upload: int = 64 << 20
    pixels: int = 32_000_000


def decoded(name: str, value: Any) -> bytes:
    """Return the bytes of a picture's file, of base64 or a data URL.

    Raises:
        ArgumentError: it is neither. Addresses are not fetched, and paths not opened.
    """
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ArgumentError(f"{name} must be a picture as base64 or as a data URL, not {show(value)}")
    text = value[match.end() :] if (match := _DATA_URL.match(value)) else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ArgumentError(f"{name} must be a picture as base64 or as a data URL, not {show(value[:40])}") from None


def check_picture(name: str, data: bytes, bounds: Bounds) -> tuple[int, int]:
    """Look at the head of a picture's file, and return its width and height; nothing is decoded here.

    Raises:
        ArgumentError: it is no picture of a known format.
        RefusedError: it has too many pixels.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except PIL.Image.DecompressionBombError:
        raise RefusedError(f"{name} has more than {bounds.pixels / 1e6:g} megapixels; make it smaller") from None
    except Exception:  # whatever a damaged head makes Pillow raise
        raise ArgumentError(f"{name} is no picture of a known format: {', '.join(FORMATS)}") from None
    if width * height > bounds.pixels:
        raise RefusedError(f"{name} is {width}x{height}, more than {bounds.pixels / 1e6:g} megapixels; make it smaller")
    return width, height


class Intake:
    """Makes requests of what clients send.

    Args:
        models: those that are served.
        bounds: what requests may hold.
        opened: returns the bytes of a picture; takes what messages call it, and its value.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        bounds: Bounds,
        opened: Callable[[str, Any], bytes] = decoded,
    ) -> None:
        self._models = models
        self.bounds = bounds
        self._opened = opened

    def reads(self, mode: str, model: str, options: Mapping[str, Any]) -> bool:
        """Tell whether pictures are decoded or files looked for, which takes a while, to make a request."""
        if model in self._models and self._models[model].lora_folder is not None:
            return True
        declared = MODES[mode].declared if mode in MODES else {}
        return any(name in declared and holds_pictures(declared[name]) for name in options)

    def request(
        self,
        mode: str,
        model: str,
        options: Mapping[str, Any],
        *,
        output: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Request:
        """Return a request.

        Args:
            mode: name of the mode.
            model: name of the model.
            options: as JSON has them; pictures are base64, data URLs or bytes. What is None is not given.
            output: ``format`` and ``compression``.
            more: the other fields of Request.

        Raises:
            ArgumentError: a value is unknown, missing, out of range or of the wrong type.
            ModelError: a LoRA is missing.
            RefusedError: there is no such model, or a limit of the server is passed.
        """
        served = self._models.get(model)
        if served is None:
            raise RefusedError(f"model {show(model)} is not served; there are {', '.join(self._models)}")
        if (served.kind == "upscaler") != (mode == UPSCALE.name):
            wanted = "an upscaler" if mode == UPSCALE.name else "a model that draws"
            raise ArgumentError(f"{mode} needs {wanted}, and {model} is none")
        declared = MODES[mode].declared
        if otherwise := more.get("otherwise"):
            subject = MODES[otherwise].subject.__annotations__
            declared = {**{k: v for k, v in MODES[otherwise].declared.items() if k not in subject}, **declared}
        pictures: list[bytes] = []
        sizes: dict[str, tuple[int, int]] = {}

        def picture(name: str, value: Any) -> int:
            data = self._opened(name, value)
            sizes[name] = check_picture(name, data, self.bounds)
            pictures.append(data)
            return len(pictures) - 1

        def file(name: str, value: Any) -> Any:
            named_file(self._models, served, name, value)
            return value  # by its name still: what a client may see of the job tells no paths

        given = {name: value for name, value in options.items() if value is not None}
        for name, option in declared.items():
            if option.default is REQUIRED and name not in given:
                raise ArgumentError(f"{mode} needs {name}")
        given = replaced(declared, given, picture, file)
        for name, value in built(declared, {k: v for k, v in given.items() if not holds_pictures(declared[k])}).items():
            declared[name].check(value)
        if "prompt" in given and "loras" in declared:
            take_tags(given["prompt"], served.lora_folder, LORA_FOLDER)
        if mode in _SIZED_BY_PICTURE or otherwise in _SIZED_BY_PICTURE:
            own = sizes.get("image") or sizes.get("images[0]")
            self._check_size(mode, {**served.defaults, **given}, own)
        else:
            self._check_size(mode, {**served.drawn_with, **given})
        self._check_output(mode, output or {})
        return Request(mode, model, given, pictures, {k: v for k, v in (output or {}).items() if v is not None}, **more)

    def _check_size(self, mode: str, options: Mapping[str, Any], own: tuple[int, int] | None = None) -> None:
        """Raise RefusedError for more pixels than one job may draw; *own* is the size of a picture that says it."""
        count = options.get("frames") or options.get("batch_count") or 1
        width, height = options.get("width"), options.get("height")
        if own is not None:  # of one side the other follows
            scale = width / own[0] if width else height / own[1] if height else 1.0
            width, height = width or own[0] * scale, height or own[1] * scale
        pixels = (width or _LEAST_SIDE) * (height or _LEAST_SIDE) * count if "width" in MODES[mode].declared else 0
        hires = options.get("hires")
        if isinstance(hires, Mapping):
            sides = hires.get("target_width") or 0, hires.get("target_height") or 0
            pixels = max(sides[0] * sides[1] * count, pixels * (hires.get("scale") or 2.0) ** 2)
        if pixels > self.bounds.pixels:
            raise RefusedError(
                f"{mode}: {pixels / 1e6:.1f} megapixels in all, and this server draws {self.bounds.pixels / 1e6:g} a "
                "job; ask for less"
            )

    @staticmethod
    def _check_output(mode: str, output: Mapping[str, Any]) -> None:
        """Raise ArgumentError for a format that the mode does not give."""
        kinds = formats_of(mode)
        if output.get("format") not in (None, *kinds):
            raise ArgumentError(f"output.format {show(output['format'])} is unknown; {mode} gives {', '.join(kinds)}")
