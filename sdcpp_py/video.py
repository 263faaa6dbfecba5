"""Videos that come out: their frames as Pillow images, and their files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, overload

from .applied_loras import AppliedLora
from .errors import ArgumentError, OutputError, SdcppError
from .images import GeneratedImage, Timings, failure_reason, from_pixels, write_whole
from .model_files import StrPath, show_path
from .video_files import check_video_file, format_of, write


class Video(Sequence[GeneratedImage]):
    """The frames of one generation, with what made them.

    A frame becomes a Pillow image when it is asked for, and each time another one; pixels are held once.

    Args:
        pixels: of each frame, RGB, row by row, width * height * 3 bytes.
        size: width and height of the frames in pixels.
        fps: frames a second.
        seed: that it was drawn with.
        timings: seconds of each phase.
        parameters: what was done, by option, the engine's own defaults among it; ``Model`` and ``Version`` besides.
        text: the parameters as files carry them.
        loras: what became of each LoRA that was asked for.
    """

    def __init__(
        self,
        pixels: Sequence[bytes],
        size: tuple[int, int],
        fps: float,
        seed: int,
        timings: Timings,
        parameters: Mapping[str, Any],
        text: str,
        loras: Sequence[AppliedLora] = (),
    ) -> None:
        self._pixels = tuple(pixels)
        self.size = size
        self.fps = fps
        self.seed = seed
        self.timings = timings
        self.parameters = dict(parameters)
        self.text = text
        self.loras = tuple(loras)

    @overload
    def __getitem__(self, index: int) -> GeneratedImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[GeneratedImage]: ...
    def __getitem__(self, index: int | slice) -> GeneratedImage | Sequence[GeneratedImage]:
        """Return one frame, or a tuple of them for a slice, as new images."""
        if isinstance(index, slice):
            return tuple(from_pixels(*self.size, each, self.text) for each in self._pixels[index])
        return from_pixels(*self.size, self._pixels[index], self.text)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._pixels)

    def __repr__(self) -> str:
        """Return length, size and seed."""
        return f"<Video of {len(self)} frames, {self.size[0]}x{self.size[1]}, {self.fps:g} a second, seed {self.seed}>"

    @property
    def duration(self) -> float:
        """Its length in seconds."""
        return len(self) / self.fps

    def pixels(self) -> Iterator[bytes]:
        """Yield the pixels of each frame: RGB, row by row, width * height * 3 bytes, not copied."""
        return iter(self._pixels)

    def save(self, fp: StrPath | IO[bytes], format: str | None = None, **params: Any) -> None:  # noqa: A002
        """Write a file, whole or not at all, frame by frame; it carries the parameters.

        Args:
            fp: path of the file, or a binary file object that can seek.
            format: ``webp``, ``gif``, ``png`` (animated), ``mp4`` (H.264) or ``webm`` (VP9); by default the path's
                suffix says it. The last two need PyAV: ``pip install "sdcpp-py[video]"``.
            params: what the encoder takes: Pillow's options for the first three, such as ``quality=90`` or
                ``lossless=True`` for WebP, FFmpeg's for the others, such as ``crf=18``.

        Raises:
            ArgumentError: there is no such format, no name that says one, or no such option of the encoder.
            OutputError: the file cannot be written, or PyAV is not installed.
        """
        if isinstance(fp, (str, bytes, os.PathLike)):
            kind = format_of(fp, format)
            file = check_video_file(fp, kind)
            write_whole(file, show_path(fp), lambda part: write(self, part, kind, params))
        elif callable(getattr(fp, "write", None)):
            kind = format_of(None, format)
            try:
                write(self, fp, kind, params)
            except SdcppError:
                raise
            except Exception as error:  # whatever the object or an encoder raises
                reason = failure_reason(error)
                raise OutputError(f"fp cannot be written ({reason}); it must be open and able to seek") from None
        else:
            raise ArgumentError("fp must be a path or a binary file object")
