"""The files that videos are saved to: a frame at a time, by Pillow's encoders and by PyAV's.

Pillow's own writers of GIF and PNG hold every frame until the last one is there. Here its encoders get one at a time,
and what they make of it is put into the file.
"""

from __future__ import annotations

import io
import itertools
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from PIL import Image, features

from .errors import ArgumentError, OutputError
from .images import GeneratedImage, check_writable, from_pixels
from .model_files import StrPath, show_path

if TYPE_CHECKING:
    from .video import Video

SUFFIXES = {".webp": "webp", ".gif": "gif", ".png": "png", ".apng": "png", ".mp4": "mp4", ".webm": "webm"}
_NAMES = ", ".join(dict.fromkeys(SUFFIXES.values()))
# Container -> encoder, and what it is told where the caller says nothing else: near to what cannot be told from the
# frames, in FFmpeg's own scales.
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "mp4": ("libx264", {"crf": "18", "preset": "medium"}),
    "webm": ("libvpx-vp9", {"crf": "24", "b": "0", "row-mt": "1"}),
}
# What Pillow's encoders take of what is written here; it ignores anything else.
_OPTIONS = {
    "webp": (
        "lossless", "quality", "alpha_quality", "method", "exact", "minimize_size", "allow_mixed", "kmin", "kmax",
        "background", "duration", "loop", "icc_profile", "exif", "xmp",
    ),
    "png": ("optimize", "compress_level", "compress_type", "icc_profile", "exif", "dpi", "pnginfo"),
    "gif": ("optimize", "interlace"),
}  # fmt: skip
_BT709 = 1  # of ITU-T H.273: primaries, transfer and matrix
_NARROW = 1  # FFmpeg's AVCOL_RANGE_MPEG
_LARGE = 256  # pixels
_STILLS = (b"avif", b"avis", b"heic", b"mif1")  # brands of the container that MP4 shares with pictures
_MOST_GIF_FPS = 50  # viewers show shorter delays than 20 ms as 100 ms


def format_of(path: StrPath | None, asked: str | None) -> str:
    """Return the format that is asked for, or that a path's suffix says.

    Raises:
        ArgumentError: there is none.
    """
    if asked is not None:
        name = str(asked).lower().removeprefix(".")
        if f".{name}" not in SUFFIXES:
            raise ArgumentError(f"format {asked!r} is none of {_NAMES}")
        return SUFFIXES[f".{name}"]
    if path is None:
        raise ArgumentError(f"format is needed where a file has no name: {_NAMES}")
    suffix = Path(os.fsdecode(path)).suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(f"{show_path(path)}: {suffix or 'no suffix'} is no video format; use {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def check_video_file(path: StrPath, kind: str | None = None) -> Path:
    """Return the file that a video is written to, after making sure that it can be.

    Args:
        path: the file.
        kind: its format; by default what its suffix says.

    Raises:
        OutputError: no such directory, not writable, a directory itself, an unknown suffix, or no encoder.
    """
    check_encoder(kind or format_of(path, None), show_path(path))
    file = Path(os.fsdecode(path))
    check_writable(file, show_path(path))
    return file


def check_encoder(kind: str, shown: str) -> None:
    """Make sure that videos of a format can be written.

    Args:
        kind: the format.
        shown: the file, for messages.

    Raises:
        OutputError: there is no encoder.
    """
    if kind in _ENCODERS:
        _encoder(kind, shown)
    elif kind == "webp" and not features.check("webp"):
        raise OutputError(f"{shown}: this Pillow does not write WebP; use .png or .gif")


def is_film(start: bytes) -> bool:
    """Tell by its first 12 bytes whether a file is an MP4 or a WebM, which Pillow does not read."""
    return start.startswith(b"\x1aE\xdf\xa3") or (start[4:8] == b"ftyp" and start[8:12] not in _STILLS)


class Film(NamedTuple):
    """What an MP4 or a WebM says of itself; the pixel format is FFmpeg's name of it."""

    format: str
    width: int
    height: int
    pixels: str
    frames: int
    comment: str | None


def read_film(file: StrPath | IO[bytes], shown: str) -> Film:
    """Return what an MP4 or a WebM says of itself.

    Args:
        file: its path, or a binary file object that can seek.
        shown: the file, for messages.

    Raises:
        ArgumentError: PyAV is missing, or the file is damaged.
    """
    try:
        import av
    except ImportError:
        raise ArgumentError(f'{shown} is a video, which PyAV reads; run pip install "sdcpp-py[video]"') from None
    try:
        with av.open(os.fspath(file) if isinstance(file, (str, bytes, os.PathLike)) else file, "r") as container:
            stream = container.streams.video[0]
            kind = "WEBM" if "webm" in container.format.name else "MP4"
            # A WebM does not say how many there are.
            long = float(container.duration or 0) / av.time_base
            frames = stream.frames or round(long * float(stream.average_rate or 0))
            found = {key.lower(): text for key, text in container.metadata.items()}
            return Film(kind, stream.width, stream.height, str(stream.pix_fmt), frames, found.get("comment"))
    except Exception as error:  # whatever FFmpeg finds
        raise ArgumentError(f"{shown} is a damaged video ({' '.join(str(error).split())})") from None


def _encoder(kind: str, shown: str) -> Any:
    """Return PyAV, or raise OutputError where it is missing or has no encoder for a container."""
    try:
        import av
    except ImportError:
        raise OutputError(
            f'{shown}: {kind.upper()} needs PyAV; run pip install "sdcpp-py[video]", or use .webp, .gif or .png'
        ) from None
    name = _ENCODERS[kind][0]
    try:
        av.codec.Codec(name, "w")
    except Exception:  # UnknownCodecError, which has moved between versions
        raise OutputError(f"{shown}: this PyAV has no encoder {name}; use .webp, .gif or .png") from None
    return av


def write(video: Video, file: Path | IO[bytes], kind: str, params: Mapping[str, Any]) -> None:
    """Write a video.

    Args:
        video: the frames, with size, fps and text.
        file: path of a file that may be written in part, or a binary file object.
        kind: the format.
        params: the encoder's.

    Raises:
        ArgumentError: the encoder has no such option.
        OutputError: there is no encoder, or the format cannot show so many frames a second.
        Exception: whatever the system or an encoder raises.
    """
    if kind in _ENCODERS:
        _write_av(video, file, kind, params)
        return
    if wrong := [name for name in params if name not in _OPTIONS[kind]]:
        raise ArgumentError(f"{wrong[0]} is no option of {kind} here; there are {', '.join(_OPTIONS[kind])}")
    writer: Callable[[Video, IO[bytes], Mapping[str, Any]], None]
    writer = {"webp": _write_webp, "gif": _write_gif, "png": _write_png}[kind]
    if isinstance(file, Path):
        with file.open("wb") as opened:
            writer(video, opened, params)
    else:
        writer(video, file, params)


def durations(count: int, fps: float, ticks: int) -> list[int]:
    """Return how long each frame is shown, in ticks of which there are some a second; rounding does not add up."""
    starts = [round(index * ticks / fps) for index in range(count + 1)]
    return [after - before for before, after in itertools.pairwise(starts)]


def _images(video: Video) -> Iterator[GeneratedImage]:
    """Yield the frames as images, one at a time."""
    return (from_pixels(*video.size, each, "") for each in video.pixels())


class _Frames(GeneratedImage):
    """A Pillow image of several frames, of which it holds one: encoders seek to each."""

    n_frames: int
    _pixels: list[bytes]
    _index: int

    @classmethod
    def of(cls, video: Video) -> _Frames:
        """Return the image of a video, at its first frame."""
        image = video[0]
        image.__class__ = cls  # as GeneratedImage itself is made
        assert isinstance(image, cls)
        image.n_frames, image._pixels, image._index = len(video), list(video.pixels()), 0
        return image

    def seek(self, frame: int) -> None:
        """Show a frame; EOFError behind the last one, as Pillow's images raise it."""
        if not 0 <= frame < self.n_frames:
            raise EOFError("no such frame")
        self.frombytes(self._pixels[frame])
        self._index = frame

    def tell(self) -> int:
        """Return the number of the frame."""
        return self._index


def _write_webp(video: Video, file: IO[bytes], params: Mapping[str, Any]) -> None:
    """Write an animated WebP; Pillow gives its encoder a frame at a time."""
    told = {"duration": durations(len(video), video.fps, 1000), "loop": 0, **params}
    _Frames.of(video).save(file, "WEBP", save_all=True, **told)


# --- PNG --------------------------------------------------------------------------------------------------------------


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk: its length, kind, data and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and data of a PNG's chunks."""
    at = 8  # behind the signature
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _write_png(video: Video, file: IO[bytes], params: Mapping[str, Any]) -> None:
    """Write an animated PNG; its format: https://www.w3.org/TR/png-3/#apngFrame-based-animation."""
    shown = durations(len(video), video.fps, 1000)
    number = itertools.count()
    for index, image in enumerate(_images(video)):
        held = io.BytesIO()
        image.info["parameters"] = video.text if index == 0 else ""
        image.save(held, "PNG", **params)
        control = struct.pack(">IIIIIHHBB", next(number), *video.size, 0, 0, shown[index], 1000, 0, 0)
        is_first_data = True
        for kind, data in _png_chunks(held.getvalue()):
            if kind == b"IDAT":
                if is_first_data:
                    file.write(_png_chunk(b"fcTL", control))
                    is_first_data = False
                part = data if index == 0 else struct.pack(">I", next(number)) + data
                file.write(_png_chunk(b"IDAT" if index == 0 else b"fdAT", part))
            elif index == 0 and kind != b"IEND":
                if kind == b"IHDR":
                    file.write(b"\x89PNG\r\n\x1a\n")
                file.write(_png_chunk(kind, data))
                if kind == b"IHDR":
                    file.write(_png_chunk(b"acTL", struct.pack(">II", len(video), 0)))
    file.write(_png_chunk(b"IEND", b""))


# --- GIF --------------------------------------------------------------------------------------------------------------


def _write_gif(video: Video, file: IO[bytes], params: Mapping[str, Any]) -> None:
    """Write a GIF whose frames have palettes of their own: https://www.w3.org/Graphics/GIF/spec-gif89a.txt."""
    if video.fps > _MOST_GIF_FPS:
        raise OutputError(f"GIF shows at most {_MOST_GIF_FPS} frames a second, not {video.fps:g}; use .webp or .png")
    file.write(b"GIF89a" + struct.pack("<HHBBB", *video.size, 0x70, 0, 0))
    file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # again and again
    if comment := video.text.encode():
        parts = (comment[at : at + 255] for at in range(0, len(comment), 255))
        file.write(b"\x21\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\x00")
    shown = durations(len(video), video.fps, 100)
    for image, hundredths in zip(_images(video), shown, strict=True):
        held = io.BytesIO()
        # Choosing colours is what takes the time: a sixteenth of the pixels of a large frame will do.
        some = image.reduce(4) if min(image.size) >= _LARGE else image
        colours = some.quantize(256)
        image.quantize(palette=colours, dither=Image.Dither.NONE).save(held, "GIF", **params)
        descriptor, palette, data = _gif_image(held.getvalue())
        file.write(b"\x21\xf9\x04" + struct.pack("<BHBB", 0x04, hundredths, 0, 0))
        size = (len(palette) // 3).bit_length() - 2
        file.write(descriptor[:9] + bytes([descriptor[9] & 0x40 | 0x80 | size]) + palette + data)
    file.write(b";")


def _gif_image(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return descriptor, palette and compressed pixels of the one image in a GIF."""
    flags = data[10]
    at, palette = 13, b""
    if flags & 0x80:
        palette = data[at : at + 3 * (2 << (flags & 7))]
        at += len(palette)

    def behind_blocks(at: int) -> int:
        while data[at]:
            at += 1 + data[at]
        return at + 1

    while data[at] == 0x21:  # extensions
        at = behind_blocks(at + 2)
    descriptor = data[at : at + 10]
    at += 10
    if descriptor[9] & 0x80:
        palette = data[at : at + 3 * (2 << (descriptor[9] & 7))]
        at += len(palette)
    return descriptor, palette, data[at : behind_blocks(at + 1)]


# --- MP4 and WebM -----------------------------------------------------------------------------------------------------


def _write_av(video: Video, file: Path | IO[bytes], kind: str, params: Mapping[str, Any]) -> None:
    """Write an MP4 or a WebM by PyAV, in the colours of BT.709, which players take for granted."""
    from fractions import Fraction

    import numpy as np

    shown = show_path(file) if isinstance(file, Path) else kind
    av = _encoder(kind, shown)
    name, told = _ENCODERS[kind]
    width, height = video.size
    options = {**told, **{key: str(value) for key, value in params.items()}}
    with av.open(str(file) if isinstance(file, Path) else file, "w", format=kind) as container:
        container.metadata["comment"] = video.text
        stream = container.add_stream(name, rate=Fraction(video.fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        coder = stream.codec_context
        coder.color_primaries = coder.color_trc = coder.colorspace = _BT709
        coder.color_range = _NARROW
        coder.open()
        if coder.options:  # what the encoder did not take
            raise ArgumentError(f"{next(iter(coder.options))} is no option of {name}")
        for pixels in video.pixels():
            array = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
            frame = av.VideoFrame.from_ndarray(array, "rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode(None))
