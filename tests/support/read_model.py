"""What the native readers of model files give the engine, without loading a model of it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from sdcpp_py import engine

# By ggml's number of a type: how its bytes are read, and how they become f32.
BF16 = 30
NUMPY = {0: np.dtype("<f4"), 1: np.dtype("<f2"), BF16: np.dtype("<u2")}


def read_model(path: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Return a model's tensors by name, each as its shape without leading ones and its bytes (of f32).

    Raises:
        ValueError: The readers refuse it; with their line.
    """
    library = ctypes.CDLL(engine.versions()["library"])
    library.sdcpp_probe_read_error.restype = ctypes.c_char_p
    library.sdcpp_probe_read_tensor.restype = ctypes.c_char_p
    count = library.sdcpp_probe_read_model(str(path).encode())
    if count < 0:
        raise ValueError(library.sdcpp_probe_read_error().decode())
    found = {}
    for index in range(count):
        kind, sizes, data, size = ctypes.c_int(), (ctypes.c_int64 * 5)(), ctypes.c_void_p(), ctypes.c_uint64()
        name = library.sdcpp_probe_read_tensor(
            index, ctypes.byref(kind), sizes, ctypes.byref(data), ctypes.byref(size)
        ).decode()
        content = ctypes.string_at(data.value or 0, size.value)
        shape = tuple(sizes)[::-1]
        while shape[:1] == (1,):
            shape = shape[1:]
        if kind.value in NUMPY:
            numbers = np.frombuffer(content, NUMPY[kind.value])
            if kind.value == BF16:
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            content = numbers.astype(np.float32).tobytes()
        found[name] = (shape, content)
    return found
