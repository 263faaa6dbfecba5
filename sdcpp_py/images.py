"""Pictures that come out: Pillow images of the engine's pixels, and their files."""

from __future__ import annotations

import io
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

from PIL import Image

from ._command import unfinished
from .applied_loras import AppliedLora
from .errors import OutputError, SdcppError
from .metadata import EXIF_IFD, EXIF_USER_COMMENT
from .model_files import StrPath, show_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Formats whose files hold pictures of some sizes only; Pillow shrinks others without a word.
_FIXED_SIZES = ("ICO", "ICNS")
_MOST_EXIF = 65_533  # bytes of a segment of JPEG

log = logging.getLogger("sdcpp_py")


class GeneratedImage(Image.Image):
    """A Pillow image that writes its generation parameters into the files it is saved to.

    ``info["parameters"]`` holds them, as it does for a PNG that Pillow has read. What Pillow's methods make of it
    (``copy``, ``resize``, ``crop``, ``convert``, ``rotate``, ...) is such an image, too.
    """

    def _new(self, im: Any) -> GeneratedImage:
        """Return an image of other pixels, which keeps this one's info; most of Pillow's methods make theirs by it."""
        return _as_generated(super()._new(im))

    def transform(self, *arguments: Any, **more: Any) -> GeneratedImage:
        """Transform as Pillow does; rotate() does so, too."""
        return _as_generated(super().transform(*arguments, **more))

    def save(self, fp: StrPath | IO[bytes], format: str | None = None, **params: Any) -> None:  # type: ignore[override]  # noqa: A002
        """Save as Pillow does; PNG gets a text chunk, JPEG, WebP and AVIF a comment in EXIF, GIF a comment.

        What the caller gives there stays. Other formats carry no parameters.
        """
        kind = (format or _format_of(fp)).upper()
        text = self.info.get("parameters")
        if text and kind == "PNG" and "pnginfo" not in params:
            from PIL.PngImagePlugin import PngInfo

            chunks = params["pnginfo"] = PngInfo()
            (chunks.add_text if text.isascii() else chunks.add_itxt)("parameters", text)
        elif text and kind in ("JPEG", "WEBP", "AVIF") and "exif" not in params:
            exif = Image.Exif()
            exif.get_ifd(EXIF_IFD)[EXIF_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
            made = exif.tobytes()  # Pillow's AVIF takes an Exif with this part alone for an empty one
            if kind == "JPEG" and len(made) > _MOST_EXIF:
                log.warning("the parameters are too long for a JPEG, which is written without them; use .png or .webp")
            else:
                params["exif"] = made
        elif text and kind == "GIF":
            params.setdefault("comment", text.encode())
        super().save(fp, format, **params)


def _as_generated(image: Image.Image) -> GeneratedImage:
    """Return an image, itself, as one that writes its parameters."""
    # Pillow has no constructor that makes a subclass; the class only adds methods.
    image.__class__ = GeneratedImage
    assert isinstance(image, GeneratedImage)
    return image


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
    return with_parameters(image, parameters)


def with_parameters(image: Image.Image, parameters: str) -> GeneratedImage:
    """Return an image, itself, as one whose files carry a text."""
    made = _as_generated(image)
    made.info["parameters"] = parameters
    return made


def _numbered(base: Path, count: int, first: int | None) -> list[Path]:
    """Return the files of a batch: by number where the name has room for one, as ``%03d``, else with ``_2``, ..."""
    if room := re.search(r"%(0?\d{0,2})d", base.name):
        begin, end = base.name[: room.start()], base.name[room.end() :]
        return [base.with_name(f"{begin}{index + (first or 0):{room[1]}d}{end}") for index in range(count)]
    if first is not None:
        raise OutputError(
            f"--output-begin-idx has no effect without %d in --output, as in {base.stem}_%03d{base.suffix}"
        )
    return [base, *(base.with_name(f"{base.stem}_{i}{base.suffix}") for i in range(2, count + 1))]


def check_output(path: StrPath, count: int = 1, size: tuple[int, int] = (1, 1), first: int | None = None) -> list[Path]:
    """Return the files that *count* images are written to, after making sure that they can be.

    Args:
        path: file of the first image; the others get ``_2``, ``_3``, ... before the suffix. With ``%d``, ``%03d`` or
            the like in its name each gets a number there, from 0.
        count: number of images.
        size: their width and height in pixels.
        first: that number of the first image.

    Raises:
        OutputError: no such directory, not writable, a directory itself, or a suffix or size Pillow cannot write.
    """
    base = Path(os.fsdecode(path))
    shown = show_path(path)
    Image.init()
    kind = Image.EXTENSION.get(base.suffix.lower())
    if kind is None:
        raise OutputError(f"{shown}: {base.suffix or 'no suffix'} is no picture format; use .png, .jpg or .webp")
    _try_format(kind, shown, size)
    files = _numbered(base, count, first)
    for file in files:
        check_writable(file, show_path(file))
    return files


def _try_format(kind: str, shown: str, size: tuple[int, int]) -> None:
    """Raise OutputError unless Pillow writes a format in a size; small pictures as long and as high are tried."""
    if kind in _FIXED_SIZES:
        raise OutputError(f"{shown}: {kind} has room for icons only; use .png, .jpg or .webp")
    if kind not in Image.SAVE:
        raise OutputError(f"{shown}: this Pillow does not write {kind}; use .png, .jpg or .webp")
    for width, height in dict.fromkeys([(1, 1), (size[0], 1), (1, size[1])]):
        try:
            from_pixels(width, height, bytes(width * height * 3), "a trial").save(io.BytesIO(), format=kind)
        except Exception as error:  # whatever an encoder raises
            what = kind if (width, height) == (1, 1) else f"{kind} of {size[0]}x{size[1]}"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OutputError(f"{shown}: this Pillow cannot write {what} ({reason}); use .png") from None


def _part(file: Path) -> Path:
    """Return where a file is written before it is whole: beside the one that a link leads to."""
    target = Path(os.path.realpath(file))
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def check_writable(file: Path, shown: str) -> None:
    """Make sure that a file can be written, without changing it.

    Args:
        file: its path.
        shown: the path, or argument and path, for messages.

    Raises:
        OutputError: it cannot.
    """
    part = _part(file)
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        raise OutputError(f"{shown} cannot be written ({failure_reason(error)})") from None
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError(f"{shown} is a directory; name a file in it")
    if mode is not None and not stat.S_ISREG(mode):
        raise OutputError(f"{shown} is no regular file; choose another name")
    if mode is not None and not mode & 0o222:
        raise OutputError(f"{shown} is write-protected; remove it or choose another name")
    if not os.path.isdir(part.parent):
        raise OutputError(f"{shown}: the directory does not exist; make it first")
    try:
        with unfinished(part):
            part.touch()
    except (OSError, ValueError) as error:
        raise OutputError(f"{shown} cannot be written ({failure_reason(error)}); choose another directory") from None


def failure_reason(error: Exception) -> str:
    """Return what is wrong, in the system's words where those are known, in one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def write_whole(file: Path, shown: str, write: Callable[[Path], object]) -> None:
    """Write a file, whole or not at all.

    Args:
        file: its path; what a link leads to is replaced, not the link.
        shown: the path, or argument and path, for messages.
        write: called with the path of a new file beside it.

    Raises:
        OutputError: it cannot be written.
    """
    part = _part(file)
    try:
        with unfinished(part):
            write(part)
            part.replace(os.path.realpath(file))
    except SdcppError:
        raise
    except Exception as error:  # whatever the system or an encoder raises
        raise OutputError(f"{shown} cannot be written ({failure_reason(error)})") from None


def save_all(images: Iterable[Image.Image], files: Sequence[Path]) -> None:
    """Write images to files, each whole or not at all.

    Raises:
        OutputError: a file cannot be written; those before it are complete.
    """
    for image, file in zip(images, files, strict=True):
        kind = _format_of(file)
        write_whole(file, show_path(file), lambda part: image.save(part, format=kind))  # noqa: B023 (called at once)


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
        loras: what became of each LoRA that was asked for.
    """

    def __init__(
        self,
        images: Sequence[GeneratedImage],
        seeds: Sequence[int],
        timings: Timings,
        parameters: Mapping[str, Any],
        loras: Sequence[AppliedLora] = (),
    ) -> None:
        self._images = tuple(images)
        self.seeds = tuple(seeds)
        self.timings = timings
        self.parameters = dict(parameters)
        self.loras = tuple(loras)

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

    def to_numpy(self) -> NDArray[np.uint8]:
        """Return the pictures as a new array of uint8 and the shape (n, height, width, 3)."""
        import numpy as np

        wide, high = self._images[0].size
        pixels = np.empty((len(self), high, wide, 3), np.uint8)
        for row, image in zip(pixels, self._images, strict=True):
            row[...] = np.asarray(image)
        return pixels

    def __repr__(self) -> str:
        """Return size and seeds."""
        size = "x".join(map(str, self._images[0].size)) if self._images else "none"
        return f"<Images {len(self)} of {size}, seeds {list(self.seeds)}>"
