"""Checks of model files before the engine reads them, so that a bad file is named by what is wrong with it."""

from __future__ import annotations

import json
import os
import stat
from typing import IO, Union

from .errors import ModelError

StrPath = Union[str, "os.PathLike[str]", bytes]

# First bytes of files that people pass by mistake.
_NOT_MODELS = {
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a WebP picture or sound",
    b"%PDF": "a PDF document",
    b"<!DO": "an HTML page, perhaps of a failed download",
    b"<htm": "an HTML page, perhaps of a failed download",
    b"vers": "a Git LFS pointer; fetch the file itself with git lfs pull",
    b"\x1f\x8b": "a gzip archive",
}
# GGUF, zip (PyTorch) and pickle (PyTorch before 1.6).
_OTHER_MODELS = (b"GGUF", b"PK\x03\x04", b"\x80\x02")
_SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit


def show_path(path: StrPath) -> str:
    """Return a path for a message, with undecodable bytes escaped."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode("utf-8")


def encode_path(path: StrPath, what: str) -> bytes:
    """Return a path as the bytes that the engine opens; *what* names the argument in messages."""
    try:
        encoded = os.fsencode(path)
    except (TypeError, UnicodeEncodeError):
        raise ModelError(f"{what}: {path!a} is not a path") from None
    if b"\0" in encoded:
        raise ModelError(f"{what}: the path {path!a} holds a NUL byte")
    return encoded


def check_model_file(path: StrPath, what: str) -> bytes:
    """Return the path as bytes after a look at the file.

    Args:
        path: the file.
        what: name of the argument, for messages.

    Raises:
        ModelError: missing, a directory, empty, unreadable, cut off, or plainly not a model.
    """
    encoded = encode_path(path, what)
    shown = show_path(path)
    try:
        status = os.stat(encoded)
        if stat.S_ISDIR(status.st_mode):
            hint = "pass one of its files"
            if os.path.exists(os.path.join(encoded, b"model_index.json")):
                hint = "it holds a model in diffusers' layout; pass a single-file checkpoint"
            raise ModelError(f"{what}: {shown} is a directory; {hint}")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{what}: {shown} is not a regular file")
        if status.st_size == 0:
            raise ModelError(f"{what}: {shown} is empty; fetch it again")
        with open(encoded, "rb") as file:
            start = file.read(8)
            if start.startswith(_OTHER_MODELS):
                return encoded  # the engine's own readers check these
            kind = next((kind for magic, kind in _NOT_MODELS.items() if start.startswith(magic)), None)
            if kind is not None:
                raise ModelError(f"{what}: {shown} is {kind}, not a model")
            _check_safetensors(start, file, status.st_size, f"{what}: {shown}")
    except FileNotFoundError:
        raise ModelError(f"{what}: {shown} does not exist; check the path") from None
    except OSError as error:
        raise ModelError(f"{what}: {shown} cannot be read ({error.strerror}); check its rights") from None
    return encoded


def _check_safetensors(start: bytes, file: IO[bytes], size: int, where: str) -> None:
    """Raise ModelError unless the header is whole and the tensors it lists lie inside the file."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= _SAFETENSORS_HEADER_LIMIT:
        raise ModelError(f"{where} is no model file; the engine reads safetensors, GGUF and PyTorch checkpoints")
    if 8 + length > size:
        raise ModelError(f"{where} ends inside its header ({size} bytes); it is cut off, fetch it again")
    try:
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        end = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise ModelError(f"{where} has a damaged header; fetch it again") from None
    if end > size:
        raise ModelError(f"{where} has {size} bytes of {end}; it is cut off, fetch it again")
