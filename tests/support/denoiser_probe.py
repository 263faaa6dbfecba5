"""The denoiser of a model of full size, without its weights, alone on the loopback accelerator."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .build_tree import ROOT
from .checkpoints import checkpoint_shapes, safetensors_header
from .loopback import Loopback

GIB = 1 << 30


@dataclass(frozen=True)
class Model:
    """A model, the size of picture it draws best, and its prompt's tokens."""

    family: str
    width: int
    height: int
    tokens: int
    dtype: str = "f16"


MODELS = {
    "SD 1.5": Model("sd1", 512, 512, 77),
    "SDXL": Model("sdxl", 1024, 1024, 77),
    "Z-Image": Model("zimage", 512, 512, 64, "bf16"),
    "Flux": Model("flux", 1024, 1024, 256),
    "Qwen-Image": Model("qwen_image", 1024, 1024, 64, "bf16"),
}


class Probe:
    """A denoiser of full size on the loopback accelerator, which counts and computes nothing."""

    def __init__(
        self, loopback: Loopback, lib: Any, ffi: Any, path: Path, model: Model, mode: str, pin: bool, keep: int = 0
    ) -> None:
        self.loopback, self.lib, self.ffi, self.model = loopback, lib, ffi, model
        self.handle = lib.sdcpp_probe_new(bytes(path), b"Loopback0", mode.encode(), pin, keep)
        if self.handle == ffi.NULL:
            why = ffi.string(lib.sdcpp_probe_error()).decode()
            raise RuntimeError(f"{path.name} cannot be made on the loopback accelerator: {why}")

    def begin(self, budget: int) -> None:
        """Start a generation with a budget in bytes."""
        self.lib.sdcpp_probe_begin(self.handle, budget / GIB)
        self.loopback.reset()

    def step(self, count: int = 1, passes: int = 1) -> float:
        """Compute the denoiser's passes of some steps and return the mean virtual seconds of a step."""
        before = self.loopback.clock()["host_seconds"]
        for _ in range(count):
            model = self.model
            if not self.lib.sdcpp_probe_step(self.handle, model.width, model.height, model.tokens, passes):
                raise RuntimeError(self.ffi.string(self.lib.sdcpp_probe_error()).decode() or "the engine gave up")
        return (self.loopback.clock()["host_seconds"] - before) / count

    def stream(self) -> dict[str, Any]:
        """Return how it was streamed."""
        row = self.ffi.new("sdcpp_stream_t*")
        if not self.lib.sdcpp_probe_stream(self.handle, row):
            return {}
        return {name: getattr(row, name) for name, _ in self.ffi.typeof("sdcpp_stream_t").fields}

    def segments(self) -> tuple[Any, Any, Any]:
        """Return for each segment its bytes, its share of the computing, and what the compute buffer then holds.

        The last is two rows: the least and the most bytes.
        """
        import numpy as np

        numbers, cost, found = self.ffi.new("uint64_t[3]"), self.ffi.new("double*"), []
        size, least, most = numbers, numbers + 1, numbers + 2
        while self.lib.sdcpp_probe_segment(self.handle, len(found), size, cost, least, most):
            found.append((cost[0], *numbers))
        costs, sizes, *values = np.array(found, float).T
        return sizes, costs / costs.sum(), values

    def close(self) -> None:
        """Free it."""
        self.lib.sdcpp_probe_free(self.handle)


DECLARATIONS = """
const char* sdcpp_probe_error(void);
void sdcpp_probe_clock(double (*now)(void));
void sdcpp_probe_disk(double rate, void (*wait_until)(double), double (*stream_end)(void*));
void* sdcpp_probe_new(const char* checkpoint, const char* device, const char* mode, bool pin, uint64_t keep);
void sdcpp_probe_begin(void* probe, double max_vram);
bool sdcpp_probe_step(void* probe, int width, int height, int tokens, int passes);
bool sdcpp_probe_segment(void* probe, int index, uint64_t* bytes, double* cost, uint64_t* least,
                       uint64_t* most);
bool sdcpp_probe_stream(void* probe, sdcpp_stream_t* stream);
void sdcpp_probe_free(void* probe);
"""


@contextmanager
def header_only(model: Model) -> Iterator[Path]:
    """Give a checkpoint whose tensors take no disk space: a header, then a hole."""
    shapes = checkpoint_shapes(model.family)
    header = safetensors_header(shapes, model.dtype, {"format": "pt"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{model.family}.safetensors")
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(len(header) + 2 * sum(math.prod(shape) for shape in shapes.values()))
        yield path


def probe_library() -> tuple[Any, Any]:
    """Return cffi's interface to the engine library's probe."""
    import cffi

    from sdcpp_py import engine

    ffi = cffi.FFI()
    struct = (ROOT / "native" / "sdcpp" / "api" / "sdcpp.h").read_text()
    struct = struct[: struct.index("} sdcpp_stream_t;")]
    ffi.cdef(f"{struct[struct.rindex('typedef struct') :]}}} sdcpp_stream_t;{DECLARATIONS}")
    return ffi, ffi.dlopen(engine.versions()["library"])
