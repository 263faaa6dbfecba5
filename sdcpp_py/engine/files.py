"""What model files hold, from their headers alone; read by the engine library, but without a model or a device."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BackendError
from .library import library


@dataclass(frozen=True)
class Tensor:
    """A tensor that a file lists.

    Attributes:
        name: as the file has it; of a folder in diffusers' layout, behind the engine's prefix of that part.
        type: ``F16``, ``F8_E4M3``, ... as safetensors calls it, or ggml's name of a quantised type.
        shape: the last dimension is the one in a row.
        bytes: as the file stores it.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int = 0


@dataclass(frozen=True)
class Listing:
    """What a file, an index of shards, or a folder lists.

    Attributes:
        error: what is wrong with it, in words that follow its path; None when nothing is.
        format: ``safetensors``, ``GGUF`` or ``PyTorch``.
        tensors: those that the engine can use.
        left_out: the others, each as ``'name' (why)``.
        metadata: what the file says of itself: key, value, and whether the value is there or only described.
    """

    error: str | None
    format: str
    tensors: tuple[Tensor, ...]
    left_out: tuple[str, ...]
    metadata: tuple[tuple[str, str, bool], ...] = ()


def file_list(path: bytes) -> Listing:
    """Return what a file lists; for 20 GB that takes some milliseconds, since no weight is read.

    Args:
        path: a file, an index of shards, or a folder; no NUL byte in it.

    Raises:
        BackendError: the engine library cannot be loaded, or there is no memory.
    """
    ffi, lib = library()
    file = lib.sdcpp_file_list(path)
    if file == ffi.NULL:
        raise BackendError("there is no memory for the names of a file's tensors")
    try:
        error = lib.sdcpp_file_error(file)
        row = ffi.new("sdcpp_file_tensor_t*")
        text, tensors = ffi.string, []
        for index in range(lib.sdcpp_file_tensor_count(file)):
            lib.sdcpp_file_tensor_get(file, index, row)
            shape = tuple(row.shape[0 : row.dimensions])
            tensors.append(Tensor(text(row.name).decode("utf-8", "replace"), text(row.type).decode(), shape, row.bytes))
        left_out = [
            text(lib.sdcpp_file_left_out(file, index)).decode("utf-8", "replace")
            for index in range(lib.sdcpp_file_left_out_count(file))
        ]
        value = ffi.new("sdcpp_file_value_t*")
        metadata: list[tuple[str, str, bool]] = []
        while lib.sdcpp_file_value_get(file, len(metadata), value):
            key, said = (text(each).decode("utf-8", "replace") for each in (value.key, value.value))
            metadata.append((key, said, value.whole))
        return Listing(
            None if error == ffi.NULL else text(error).decode("utf-8", "replace"),
            text(lib.sdcpp_file_format(file)).decode(),
            tuple(tensors),
            tuple(left_out),
            tuple(metadata),
        )
    finally:
        lib.sdcpp_file_free(file)
