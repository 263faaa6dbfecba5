"""Pictures that go in: whatever Pillow and numpy users have, as plain 8-bit Pillow images of the size that is drawn."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Protocol

from PIL import Image, UnidentifiedImageError

from .errors import ArgumentError
from .model_files import show_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("sdcpp_py")

MAX_SIDE = 16384
"""Pixels of the longest side of a picture that can be drawn, and of one that is read."""
RESIZE_MODES = ("error", "crop", "pad", "resize")
"""What becomes of a picture of another size than the one that is drawn."""

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_RINGING = 0.05
"""By how much of its range a picture of floats may leave it: what resampling adds at edges."""
_EITHER = (0.5, 16.0)
"""How far below 0 and up to where floats could be meant as 0 to 1 as well as 0 to 255."""
_ORIENTATION = 0x0112  # the tag of EXIF
_EXPECTED = "a Pillow image, a path, the bytes of a file, a binary file object or an array of numbers"


class SupportsArray(Protocol):
    """What numpy can make an array of."""

    def __array__(self, *arguments: Any, **more: Any) -> Any:
        """Return the array."""


PictureSource = Image.Image | str | os.PathLike[str] | bytes | IO[bytes] | SupportsArray
"""What is taken for a picture: see :func:`open_picture`."""


def open_picture(source: Any, what: str) -> Image.Image:
    """Return a picture as an RGB image, upright and opaque.

    - Files are what Pillow opens, of several frames the first. EXIF's orientation is applied.
    - Arrays have the shape (height, width), (height, width, channels) with 1 (L), 2 (LA), 3 (RGB) or 4 (RGBA) channels
      or, as torch has it, (channels, height, width) with 1, 3 or 4; a batch of one is a picture, too. bool is black and
      white, uint8 is taken as it is, uint16 is divided by 257.
    - Of floats, and of integers of more bits (Pillow's F and I), the range decides. Floats within 0 to 1 are multiplied
      by 255; what is within 0 to 255 is taken as it is; integers within 0 to 65535 are divided by 257; anything else is
      stretched from its least value to its largest one. Pillow's I;16 is divided by 257.
    - Floats that leave 0 to 1, or 0 to 255, by up to 5 % of it, as resampling leaves them, are clipped to it. What is
      near 0 to 1 and not within that (-0.5 to 16) could be meant as either, and is refused.
    - Transparency, of any mode, palette or colour, is put on white, as viewers do.
    - CMYK, YCbCr, HSV and LAB (D50) are converted to RGB.

    Args:
        source: the picture.
        what: name of the argument, for messages.

    Raises:
        ArgumentError: it is none, is damaged, or has sides outside 2 to 16384 pixels, or more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    return _flatten(_read(source, what), what, _WHITE)


def open_layers(source: Any, what: str) -> Image.Image:
    """Return a picture as an image of mode L, LA, RGB or RGBA, whichever holds what it has; upright.

    It takes what :func:`open_picture` does. Transparency stays, and what the file says besides is in ``info``.

    Args:
        source: the picture.
        what: name of the argument, for messages.

    Raises:
        ArgumentError: as of open_picture.
    """
    image = _read(source, what)
    info = dict(image.info)
    with reading(what):
        if image.mode[0] in "IF":
            image = _of_numbers(image, what)
        clear = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
        grey = image.mode in ("1", "L", "LA", "La")
        if clear:
            image = image.convert("LA" if grey else "RGBA")
        else:
            image = image.convert("L") if grey else _flatten(image, what, _WHITE)
    image.info = {key: value for key, value in info.items() if key != "transparency"}
    return image


def open_mask(source: Any, what: str) -> Image.Image:
    """Return a mask as an L image: 255 is what is drawn anew, 0 what stays.

    It takes what :func:`open_picture` does; colours count by their luma, transparent is black, and where the largest
    value is 1, 1 is white.

    Args:
        source: the mask.
        what: name of the argument, for messages.

    Raises:
        ArgumentError: as of open_picture.
    """
    mask = _flatten(_read(source, what), what, _BLACK).convert("L")
    return mask.point([0] + [255] * 255) if mask.getextrema()[1] == 1 else mask


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return an RGB or L image as a contiguous array of shape (height, width, 3 or 1)."""
    import numpy as np

    pixels = np.ascontiguousarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def crop_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the largest part of a picture that has the proportions of a size, from the middle, in that size."""
    # In the picture's own pixels; by a factor between the sizes it could be a bit larger than the picture.
    wide = min(image.width, image.height * size[0] / size[1])
    high = min(image.height, image.width * size[1] / size[0])
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    return image.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + wide, top + high))


def fit(image: Image.Image, size: tuple[int, int], how: str, what: str) -> Image.Image:
    """Return a picture in another size.

    Args:
        image: the picture.
        size: the wanted (width, height).
        how: one of ``RESIZE_MODES``: an error where the size is another one; the largest part of the wanted proportions
            from the middle; the whole picture, with the pixels of its edges repeated around it (around a mask: black);
            or the whole picture, stretched.
        what: name of the argument, for messages.

    Raises:
        ArgumentError: the size is another one, and *how* is ``error``.
    """
    if image.size == size:
        return image
    if how == "error":
        raise ArgumentError(
            f"{what} is {image.width}x{image.height}, but {size[0]}x{size[1]} is drawn; choose with resize_mode: crop, "
            "pad or resize, or give width and height"
        )
    if how == "resize":
        return image.resize(size, Image.Resampling.LANCZOS)
    if how == "crop":
        return crop_to(image, size)
    import numpy as np

    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    before = [(size[axis] - inner[axis]) // 2 for axis in (1, 0)]
    borders = [(start, size[axis] - inner[axis] - start) for start, axis in zip(before, (1, 0), strict=True)]
    pixels = np.asarray(image.resize(inner, Image.Resampling.LANCZOS))
    if image.mode == "L":
        return Image.fromarray(np.pad(pixels, borders))
    return Image.fromarray(np.pad(pixels, [*borders, (0, 0)], mode="edge"))


# --- reading ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Make one-line errors of whatever Pillow raises; decoders of damaged files raise anything."""
    try:
        with warnings.catch_warnings():
            # A bomb is an error here; what else is warned of (damaged tags, say) does not matter for the pixels.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except ArgumentError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ArgumentError(f"{what}: more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller") from None
    except UnidentifiedImageError:
        # Pillow's own words hold the address of an object.
        raise ArgumentError(f"{what}: not a picture, or a damaged one (of no format that Pillow knows)") from None
    except MemoryError:
        raise ArgumentError(f"{what}: too large for the memory there is; make it smaller") from None
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ArgumentError(f"{what}: not a picture, or a damaged one ({said})") from None


def _check_size(width: int, height: int, what: str) -> None:
    """Raise ArgumentError for sides and areas that no picture has."""
    most = Image.MAX_IMAGE_PIXELS
    if min(width, height) < 2:
        raise ArgumentError(f"{what} is {width}x{height}: too small for a picture")
    if max(width, height) > MAX_SIDE:
        raise ArgumentError(f"{what} is {width}x{height}: at most {MAX_SIDE} pixels a side; make it smaller")
    if most is not None and width * height > most:
        raise ArgumentError(f"{what} is {width}x{height}: more than {most} pixels; make it smaller")


def _read(source: Any, what: str) -> Image.Image:
    """Return a picture as a loaded Pillow image of any mode."""
    if isinstance(source, Image.Image):
        with reading(what):
            _check_size(*source.size, what)
            source.load()
            return _upright(source)
    if isinstance(source, (str, os.PathLike)):
        return _read_file(source, what)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_file(io.BytesIO(source), what)
    if callable(getattr(source, "read", None)):
        with reading(what):
            if not callable(getattr(source, "seek", None)) or not getattr(source, "seekable", lambda: True)():
                source = io.BytesIO(source.read())
        return _read_file(source, what)
    if hasattr(source, "__array__") or hasattr(source, "__array_interface__"):
        with reading(what):
            import numpy as np

            return _of_array(np.asarray(source), what)
    from .options.checks import show  # which imports this file

    raise ArgumentError(f"{what} must be {_EXPECTED}, not {show(source)}")


def _read_file(file: Any, what: str) -> Image.Image:
    """Return the picture in a file."""
    if isinstance(file, (str, os.PathLike)):
        path = os.fspath(file)
        if not isinstance(path, str):
            raise ArgumentError(f"{what} must be {_EXPECTED}, not a path of bytes")
        shown = " ".join(show_path(path).split()) or "''"
        if "\0" in path or not os.path.exists(path):
            raise ArgumentError(f"{what} {shown}: not a picture, there is no such file")
        if os.path.isdir(path):
            raise ArgumentError(f"{what} {shown}: not a picture, but a directory")
        what = f"{what} {shown}"
    with reading(what), Image.open(file) as image:
        _check_size(*image.size, what)
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a photo, and what its camera has besides
            log.warning("%s: of %d frames the first one is taken", what, getattr(image, "n_frames", 0))
        image.load()
        # The file is closed here; a copy keeps pixels and what is known of them.
        return _upright(image.copy() if _orientation(image) == 1 else image)


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 where there is none or it cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged tags, of which Pillow raises anything
        return 1
    return found if found in range(1, 9) else 1


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned as EXIF's orientation says."""
    if _orientation(image) == 1:
        return image
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


# --- modes and layouts ------------------------------------------------------------------------------------------------


def _of_array(array: Any, what: str) -> Image.Image:
    """Return an array as an image of mode L, LA, RGB or RGBA."""
    import numpy as np

    shape = "x".join(map(str, array.shape)) or "none"
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise ArgumentError(
            f"{what} has the shape {shape}: a picture is (height, width), (height, width, channels) or (channels, "
            "height, width), with 1 to 4 channels"
        )
    _check_size(array.shape[1], array.shape[0], what)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(_to_bytes(array, what)))


def _to_bytes(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Return numbers of any type as bytes, scaled by what their type or their range says."""
    import numpy as np

    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "bufi":
        raise ArgumentError(f"{what} must be {_EXPECTED}, not of dtype {array.dtype}")
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    least, largest = float(array.min()), float(array.max())
    if not np.isfinite([least, largest]).all():
        raise ArgumentError(f"{what} must hold finite numbers")
    scaled = array.astype(np.float64)
    is_float = array.dtype.kind == "f"
    if is_float and least >= -_RINGING and largest <= 1 + _RINGING:
        scaled = scaled.clip(0, 1) * 255
    elif is_float and least >= -_EITHER[0] and largest < _EITHER[1]:
        raise ArgumentError(
            f"{what} has numbers from {least:g} to {largest:g}, neither 0 to 1 nor 0 to 255; scale and clip them to "
            "one of these"
        )
    elif is_float and least >= -255 * _RINGING and _EITHER[1] <= largest <= 255 * (1 + _RINGING):
        scaled = scaled.clip(0, 255)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        scaled /= 257
    elif least >= 0 and largest <= 255:
        pass
    elif least >= 0 and largest <= 65535 and not is_float:
        scaled /= 257
    else:
        scaled = (scaled - least) / (largest - least or 1) * 255
    return (scaled + 0.5).astype(np.uint8)


def _flatten(image: Image.Image, what: str, background: tuple[int, int, int]) -> Image.Image:
    """Return an image of any mode as an opaque RGB one."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    with reading(what):
        if image.mode[0] in "IF":  # I, I;16 in its byte orders, F
            image = _of_numbers(image, what)
        elif image.mode == "LAB":
            from PIL import ImageCms

            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), srgb, outputMode="RGB")
            assert converted is not None
            image = converted
        elif image.mode == "La":
            image = image.convert("LA")
        if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            opaque = Image.new("RGBA", image.size, (*background, 255))
            opaque.alpha_composite(image.convert("RGBA"))
            image = opaque
        return image.convert("RGB")


def _of_numbers(image: Image.Image, what: str) -> Image.Image:
    """Return an image of one channel of large numbers as one of mode L or LA."""
    import numpy as np

    numbers = np.asarray(image)
    scaled = Image.fromarray(_to_bytes(numbers.astype(numbers.dtype.newbyteorder("=")), what))
    clear = image.info.get("transparency")
    if isinstance(clear, (int, float)):
        scaled.putalpha(Image.fromarray((numbers != clear).astype(np.uint8) * np.uint8(255)))
    return scaled
