"""What a file is: a model, by its header, or a picture or a video."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from .engine.files import Listing
from .errors import ArgumentError, ModelError
from .file_kinds import FileKind, kind_of
from .metadata import picture_text
from .model_files import PART_NOUNS, PART_USES, StrPath, list_file, show_path
from .parameters import Parameters, parameters_of
from .parameters.plain_text import read_text
from .reports import show_bytes, table
from .video_files import is_film, read_film

_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_LONGEST = 200

# Family -> what a diffusion model alone needs beside it; the first of several that will do is the usual one.
_BESIDE: dict[str, tuple[tuple[str, str], ...]] = {
    "SD3": (("vae", "SD 3's VAE"), ("clip_l", "CLIP-L"), ("clip_g", "CLIP-G"), ("t5xxl", "T5-XXL")),
    "Flux": (("vae", "FLUX.1's VAE"), ("clip_l", "CLIP-L"), ("t5xxl", "T5-XXL")),
    "Flux.2": (("vae", "FLUX.2's VAE"), ("llm", "Mistral Small 3.2, for klein Qwen3")),
    "Chroma": (("vae", "FLUX.1's VAE"), ("t5xxl", "T5-XXL")),
    "Chroma Radiance": (("t5xxl", "T5-XXL"),),
    "Z-Image": (("vae", "FLUX.1's VAE"), ("llm", "Qwen3 4B")),
    "Qwen-Image": (("vae", "Qwen-Image's VAE"), ("llm", "Qwen2.5-VL 7B")),
    "Anima": (("vae", "Qwen-Image's VAE"), ("llm", "Qwen3 0.6B")),
    "Ovis-Image": (("vae", "FLUX.1's VAE"), ("llm", "Ovis 2.5")),
    "ERNIE-Image": (("vae", "FLUX.2's VAE"), ("llm", "Ministral 3 3B")),
    "Wan": (("vae", "Wan's VAE"), ("t5xxl", "UMT5-XXL")),
}
_UNETS = ("SD 1.x", "SD 2.x", "SDXL", "Stable Diffusion")
_TEXT_PARTS = {"clip_l": "clip", "clip_g": "clip", "t5xxl": "t5", "llm": "llm", "vae": "vae"}


@dataclass(frozen=True)
class ModelInfo:
    """What a model's file, index of shards or folder holds, by its headers.

    Attributes:
        path: as it was asked for.
        format: ``safetensors``, ``GGUF`` or ``PyTorch``.
        family: of its diffusion model, such as ``SDXL``; None for none or an unknown one.
        parts: what it holds, such as ``diffusion``, ``vae``, ``clip``, ``lora``, ``control_net``, ``upscaler``.
        summary: the same in words.
        use: how it is passed to this package; empty where that is not known.
        needs: keyword -> what it needs beside it, as another file.
        tensors: how many there are.
        weights: numbers in them.
        bytes: that they take in the file.
        types: type -> number of tensors and bytes.
        metadata: what the file says of itself.
        left_out: tensors that the engine has no use for, each as ``'name' (why)``.
    """

    path: str
    format: str
    family: str | None
    parts: tuple[str, ...]
    summary: str
    use: str
    needs: Mapping[str, str]
    tensors: int
    weights: int
    bytes: int
    types: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        """Return lines of text."""
        lines = [f"{self.path}: {self.summary} ({self.format})"]
        if self.use:
            lines.append(f"use       {self.use}")
        for index, (keyword, what) in enumerate(self.needs.items()):
            lines.append(f"{'needs' if index == 0 else '':<9} {keyword}=  {what}")
        lines.append(f"weights   {self.weights:,} in {self.tensors} tensors, {show_bytes(self.bytes)}")
        rows = [(kind, str(count), show_bytes(size)) for kind, (count, size) in self.types.items()]
        lines += ["", table(("type", "tensors", "size"), rows, ("tensors", "size"))]
        if self.left_out:
            lines.append(f"left out: {len(self.left_out)}, such as {self.left_out[0]}")
        if self.metadata:
            lines.append("")
            lines += [f"{key}: {_short(value)}" for key, value in self.metadata.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        types = {kind: {"tensors": count, "bytes": size} for kind, (count, size) in self.types.items()}
        return {"kind": "model", **asdict(self), "types": types}


@dataclass(frozen=True)
class PictureInfo:
    """What a picture's file holds, or a video's.

    Attributes:
        path: as it was asked for.
        format: as Pillow calls it, such as ``PNG``; ``MP4`` or ``WEBM``.
        width: in pixels.
        height: in pixels.
        mode: as Pillow calls it, such as ``RGB``; of an MP4 or a WebM the pixel format as FFmpeg calls it.
        frames: more than 1 of an animation.
        parameters: the text that it carries; None without one.
        options: what that text says, as options; None for nothing that is known.
    """

    path: str
    format: str
    width: int
    height: int
    mode: str
    frames: int
    parameters: str | None
    options: Parameters | None = None

    def __str__(self) -> str:
        """Return lines of text."""
        frames = f", {self.frames} frames" if self.frames > 1 else ""
        what = "video" if self.format in ("MP4", "WEBM") else "picture"
        lines = [f"{self.path}: a {what} of {self.width}x{self.height}, {self.mode}{frames} ({self.format})"]
        lines += ["", self.parameters] if self.parameters else []
        lines += ["", str(self.options)] if self.options is not None else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        fields = asdict(replace(self, options=None))
        return {"kind": "picture", **fields, "options": None if self.options is None else self.options.to_dict()}


def info(path: StrPath) -> ModelInfo | PictureInfo:
    """Return what a file is: a model's, by its header alone, or a picture or a video.

    Args:
        path: a model's file, index of shards or folder, a picture, or, with PyAV, an MP4 or a WebM.

    Raises:
        ModelError: there is no such file, or it is damaged or neither.
    """
    start = _start_of(path)
    if is_film(start):
        return _film_info(path)
    if start.startswith(_PICTURE_STARTS) or start[4:12] in (b"ftypavif", b"ftypheic"):
        return _picture_info(path)
    listing = list_file(path, "file")
    return _model_info(show_path(path), listing, kind_of(listing))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}... ({len(text)} characters)"


def _start_of(path: StrPath) -> bytes:
    try:
        with open(os.fsdecode(path), "rb") as file:
            return file.read(12)
    except (OSError, ValueError):
        return b""  # what is wrong with it is said of a model


def _picture_info(path: StrPath) -> PictureInfo:
    import PIL.Image

    shown = show_path(path)
    try:
        with PIL.Image.open(os.fsdecode(path)) as image:
            text = picture_text(image)
            frames = int(getattr(image, "n_frames", 1))
            return PictureInfo(
                shown, str(image.format), image.width, image.height, image.mode, frames, text, parameters_of(image)
            )
    except Exception as error:  # whatever a decoder raises
        said = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"file: {shown} is a damaged picture ({said})") from None


def _film_info(path: StrPath) -> PictureInfo:
    shown = show_path(path)
    try:
        film = read_film(path, f"file: {shown}")
    except ArgumentError as error:
        raise ModelError(str(error)) from None
    options = read_text(film.comment) if film.comment else None
    return PictureInfo(shown, film.format, film.width, film.height, film.pixels, film.frames, film.comment, options)


def _model_info(shown: str, listing: Listing, kind: FileKind) -> ModelInfo:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    weights = 0
    for tensor in listing.tensors:
        counts[tensor.type] += 1
        sizes[tensor.type] += tensor.bytes
        numbers = 1
        for size in tensor.shape:
            numbers *= size
        weights += numbers
    parts = tuple(part for part in PART_NOUNS if part in kind.parts)
    return ModelInfo(
        path=shown,
        format=listing.format,
        family=kind.family,
        parts=parts,
        summary=_summary(kind, parts),
        use=_use(kind, parts),
        needs=_needs(kind),
        tensors=len(listing.tensors),
        weights=weights,
        bytes=sum(sizes.values()),
        types={name: (counts[name], sizes[name]) for name in sorted(counts, key=lambda name: -sizes[name])},
        metadata={key: text for key, text, _ in listing.metadata},
        left_out=listing.left_out,
    )


def _summary(kind: FileKind, parts: tuple[str, ...]) -> str:
    family = kind.family or "an unknown family"
    if kind.whole:
        others = [PART_NOUNS[part] for part in parts if part != "diffusion"]
        return f"a checkpoint of {family}, with {', '.join(others)}"
    if "diffusion" in parts:
        return f"a diffusion model of {family}"
    if not parts:
        names = ", ".join(f"'{name[:60]}'" for name in kind.names) or "none"
        return f"nothing that the engine knows, with tensors such as {names}"
    return " and ".join(PART_NOUNS[part] for part in parts)


def _use(kind: FileKind, parts: tuple[str, ...]) -> str:
    if kind.whole:
        return "pass model="
    if len(parts) != 1 or (parts[0] == "diffusion" and kind.family is None):
        return ""
    if parts[0] == "diffusion" and kind.family in _UNETS:
        return ""  # the engine takes one in a whole checkpoint only
    return PART_USES[parts[0]]


def _needs(kind: FileKind) -> dict[str, str]:
    """Return what a diffusion model needs in other files; of what the file has nothing is said."""
    if "diffusion" not in kind.parts or kind.family is None:
        return {}
    if kind.family in _UNETS:
        return {} if "clip" in kind.parts else {"model": "a whole checkpoint: the engine takes this UNet in one only"}
    return {keyword: what for keyword, what in _BESIDE.get(kind.family, ()) if _TEXT_PARTS[keyword] not in kind.parts}
