"""Pictures that come out: Pillow images of the engine's pixels, and their files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, overload

from PIL import Image

from .errors import OutputError
from .model_files import StrPath, show_path

_EXIF_IFD, _EXIF_USER_COMMENT = 0x8769, 0x9286


class GeneratedImage(Image.Image):
    """A Pillow image that writes its generation parameters into the files it is saved to.

    ``info["parameters"]`` holds them, as it does for a PNG that Pillow has read.
    """

    def save(self, fp: StrPath | IO[bytes], format: str | None = None, **params: Any) -> None:  # type: ignore[override]  # noqa: A002
        """Save as Pillow does; PNG gets a text chunk, JPEG and WebP an EXIF comment, unless given by the caller."""
        kind = (format or _format_of(fp)).upper()
        text = self.info.get("parameters")
        if text and kind == "PNG" and "pnginfo" not in params:
            from PIL.PngImagePlugin import PngInfo

            chunks = params["pnginfo"] = PngInfo()
            (chunks.add_text if text.isascii() else chunks.add_itxt)("parameters", text)
        elif text and kind in ("JPEG", "WEBP") and "exif" not in params:
            exif = Image.Exif()
            exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
            params["exif"] = exif
        super().save(fp, format, **params)


def _format_of(fp: object) -> str:
    """Return Pillow's format name for a path or file object, from its name; "" when it has none."""
    name = fp if isinstance(fp, (str, bytes, os.PathLike)) else getattr(fp, "name", "")
    if not isinstance(name, (str, bytes, os.PathLike)):
        return ""
    Image.init()
    return Image.EXTENSION.get(Path(os.fsdecode(name)).suffix.lower(), "")


def from_pixels(
    width: int,
    height: int,
    pixels: bytes,
    parameters: str,
    finish: Callable[[Image.Image], Image.Image] | None = None,
) -> GeneratedImage:
    """Return engine pixels as a Pillow image.

    Args:
        width: in pixels.
        height: in pixels.
        pixels: RGB, row by row, width * height * 3 bytes.
        parameters: the text that saved files carry.
        finish: what is done to the picture; None for nothing.
    """
    image = Image.frombytes("RGB", (width, height), pixels)
    if finish is not None:
        image = finish(image)
    # Pillow has no constructor that makes a subclass; the class only adds a method.
    image.__class__ = GeneratedImage
    image.info["parameters"] = parameters
    assert isinstance(image, GeneratedImage)
    return image


def check_output(path: StrPath, count: int = 1) -> list[Path]:
    """Return the files that *count* images are written to, after making sure that they can be.

    Args:
        path: file of the first image; the others get ``_2``, ``_3``, ... before the suffix.
        count: number of images.

    Raises:
        OutputError: no such directory, not writable, a directory itself, or a suffix Pillow cannot write.
    """
    base = Path(os.fsdecode(path))
    shown = show_path(path)
    Image.init()
    kind = Image.EXTENSION.get(base.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise OutputError(f"{shown}: {base.suffix or 'no suffix'} is no picture format; use .png, .jpg or .webp")
    if not base.parent.is_dir():
        raise OutputError(f"{shown}: the directory {show_path(base.parent)} does not exist; make it first")
    if base.is_dir():
        raise OutputError(f"{shown} is a directory; name a file in it")
    files = [base, *(base.with_name(f"{base.stem}_{i}{base.suffix}") for i in range(2, count + 1))]
    probe = base.with_name(f".{base.name}.{os.getpid()}.part")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{shown} cannot be written ({error.strerror}); choose another directory") from None
    return files


def save_all(images: Iterable[Image.Image], files: Sequence[Path]) -> None:
    """Write images to files, each whole or not at all.

    Raises:
        OutputError: a file cannot be written; those before it are complete.
    """
    for image, file in zip(images, files, strict=True):
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            image.save(part, format=_format_of(file))
            part.replace(file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OutputError(f"{show_path(file)} cannot be written ({error.strerror or error})") from None


@dataclass(frozen=True)
class Timings:
    """Seconds of each part of a generation.

    Attributes:
        load: loading the model, once an object.
        text: encoding the prompts.
        sampling: all sampling steps of all images.
        decoding: latents to pixels, and reading the model again where it was freed.
        total: the whole call, Python included.
        encoding: pictures that go in to latents.
    """

    load: float
    text: float
    sampling: float
    decoding: float
    total: float
    encoding: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """Return the fields as plain values for JSON, encoding where pictures went in."""
        return {name: value for name, value in asdict(self).items() if value or name != "encoding"}


class Images(Sequence[GeneratedImage]):
    """The pictures of one generation, with what made them.

    Args:
        images: the pictures, RGB.
        seeds: the seed of each.
        timings: seconds of each phase.
        parameters: what was done, by option, the engine's own defaults among it; ``Model`` and ``Version`` besides.
    """

    def __init__(
        self,
        images: Sequence[GeneratedImage],
        seeds: Sequence[int],
        timings: Timings,
        parameters: Mapping[str, Any],
    ) -> None:
        self._images = tuple(images)
        self.seeds = tuple(seeds)
        self.timings = timings
        self.parameters = dict(parameters)

    @overload
    def __getitem__(self, index: int) -> GeneratedImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[GeneratedImage]: ...
    def __getitem__(self, index: int | slice) -> GeneratedImage | Sequence[GeneratedImage]:
        """Return one picture, or a tuple of them for a slice."""
        return self._images[index]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._images)

    def __repr__(self) -> str:
        """Return size and seeds."""
        size = "x".join(map(str, self._images[0].size)) if self._images else "none"
        return f"<Images {len(self)} of {size}, seeds {list(self.seeds)}>"
