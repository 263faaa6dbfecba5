"""A cancel is answered at once, whatever is being computed, read or converted, and changes no values."""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from pathlib import Path

import pytest

import sdcpp_py
from sdcpp_py import engine
from sdcpp_py.engine import Run
from support.checkpoints import checkpoint_shapes, write_checkpoint, write_lora, write_safetensors
from support.children import in_child

PROMPT = 0.5  # seconds within which a cancel is answered


class Found(ctypes.Structure):
    """What the probe found of a node."""

    _fields_ = [("digest", ctypes.c_uint64), ("questions", ctypes.c_uint64), ("seconds", ctypes.c_double)]


def probe_library() -> ctypes.CDLL:
    """Return the engine's library with the probe's functions declared."""
    engine.library()
    library = ctypes.CDLL(str(engine.versions()["library"]))
    library.sdcpp_probe_node_name.restype = ctypes.c_char_p
    library.sdcpp_probe_node.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_size_t,
        ctypes.c_bool,
        ctypes.POINTER(Found),
    ]
    return library


def operations() -> list[str]:
    """Return the names of the operations that the probe knows."""
    library = probe_library()
    names = []
    while (name := library.sdcpp_probe_node_name(len(names))) is not None:
        names.append(name.decode())
    return names


def compute(
    name: str, size: int, *, threads: int = 2, piece_bytes: int = 0, fast: bool = True, cancel_after: float = 0.0
) -> Found:
    """Compute one operation; with *cancel_after* it is cancelled after so many seconds."""
    library = probe_library()
    ffi, lib = engine.library()
    found = Found()
    with Run() as run:
        timer = threading.Timer(cancel_after, lib.sdcpp_run_cancel, [run.native])
        if cancel_after > 0.0:
            timer.start()
        status = library.sdcpp_probe_node(
            int(ffi.cast("uintptr_t", run.native)), name.encode(), size, threads, piece_bytes, fast, ctypes.byref(found)
        )
        timer.cancel()
        assert status == (lib.SDCPP_CANCELLED if cancel_after > 0.0 else lib.SDCPP_OK), name
    return found


@in_child
def test_pieces_have_the_values_of_the_whole() -> None:
    names = operations()
    assert len(names) > 50
    ours = set()
    for name in names:
        whole = compute(name, 16, piece_bytes=1 << 40)
        engines = compute(name, 16, piece_bytes=1 << 40, fast=False)
        if whole.digest != engines.digest:
            ours.add(name.split()[0])
        for threads, piece_bytes in ((1, 4096), (2, 4096), (3, 1 << 15), (2, 64)):
            assert compute(name, 16, threads=threads, piece_bytes=piece_bytes).digest == whole.digest, (name, threads)
        assert compute(name, 16, threads=3, piece_bytes=4096, fast=False).digest == engines.digest, name
    # Where ours sum in another order, or ggml rounds; what they do besides has ggml's own values.
    assert ours == {"product", "conv", "attention", "group", "gelu"}


@in_child
def test_each_operation_asks_meanwhile() -> None:
    """With pieces as small for a small operation as the usual ones are for a large one."""
    for name in operations():
        if name == "softmax of one row":  # is 0.1 s long where it takes gigabytes
            continue
        for fast in (True, False):
            asked = compute(name, 64, threads=1, piece_bytes=1 << 14, fast=fast).questions
            assert asked >= 8, (name, asked, fast)


@pytest.mark.parametrize("threads", [1, 2])
@in_child
def test_a_cancel_inside_an_operation(threads: int) -> None:
    for name in ("attention f16", "attention q8_0", "conv 2d direct", "product f16", "product q4_0"):
        size = 64
        while (seconds := compute(name, size, threads=threads).seconds) < 0.1:
            size *= 2
        size = int(size * (1.0 / seconds) ** (0.5 if "attention" in name else 1.0)) + 1
        took = compute(name, size, threads=threads, cancel_after=0.2).seconds
        assert took < 0.2 + PROMPT, (name, took)


def seconds_to_cancel(sd: sdcpp_py.StableDiffusion, after: float, **given: object) -> float:
    """Cancel a picture after some seconds, and return how many more it took."""
    came: list[float] = []

    def cancel() -> None:
        came.append(time.monotonic())
        sd.cancel()

    timer = threading.Timer(after, cancel)
    timer.start()
    with pytest.raises(sdcpp_py.CancelledError):
        sd.txt2img("a cat", seed=1, progress=False, **given)  # type: ignore[arg-type]
    timer.join()
    return time.monotonic() - came[0]


@pytest.mark.slow
@in_child
def test_a_cancel_at_1024(tmp_path: Path) -> None:
    """In the text encoder and the denoiser, while LoRAs are merged, and in the decoder."""
    write_checkpoint("sd1", tmp_path / "model.safetensors")
    lora = write_lora(tmp_path / "lora.safetensors")
    small = {"width": 64, "height": 64, "steps": 1, "seed": 1, "progress": False}
    large = {"width": 1024, "height": 1024, "steps": 1}
    with sdcpp_py.StableDiffusion(tmp_path / "model.safetensors", threads=2) as sd:
        before = sd.txt2img("a cat", **small)[0].tobytes()  # type: ignore[arg-type]
        for after in (0.05, 0.3, 1.0, 2.0, 3.5, 6.0, 10.0, 17.0, 25.0, 40.0):
            assert seconds_to_cancel(sd, after, **large) < PROMPT, after
        for after in (0.05, 0.2, 0.5, 1.0, 2.0):
            assert seconds_to_cancel(sd, after, loras={lora: 0.5}, **large) < PROMPT, after
        assert sd.txt2img("a cat", **small)[0].tobytes() == before  # type: ignore[arg-type]
    shapes = {
        name.removeprefix("first_stage_model."): shape
        for name, shape in checkpoint_shapes("sd1").items()
        if name.startswith("first_stage_model.")
    }
    write_safetensors(tmp_path / "vae.safetensors", shapes, dtype="f16", seed=0, metadata={})
    with sdcpp_py.StableDiffusion(vae=tmp_path / "vae.safetensors", threads=2) as sd:
        for after in (3.0, 5.0, 8.0, 12.0, 20.0, 30.0):
            assert seconds_to_cancel(sd, after, **large) < PROMPT, after


@pytest.mark.slow
@in_child
def test_an_interrupt_while_loading(tmp_path: Path) -> None:
    """Reading, and converting to a type that takes long; what was begun is freed."""
    write_checkpoint("sd1", tmp_path / "model.safetensors")

    class StopError(Exception):
        pass

    def load(weight_type: str | None) -> None:
        while True:
            sdcpp_py.StableDiffusion(tmp_path / "model.safetensors", weight_type=weight_type).close()

    came = []

    def interrupt(*_: object) -> None:
        came.append(time.monotonic())
        raise StopError

    sdcpp_py.StableDiffusion().close()  # loads the backends
    signal.signal(signal.SIGALRM, interrupt)
    for weight_type in (None, "q4_K"):
        for after in (0.1, 0.4, 0.8, 1.5, 2.5):
            signal.setitimer(signal.ITIMER_REAL, after)
            with pytest.raises(StopError):
                load(weight_type)
            assert time.monotonic() - came[-1] < PROMPT, (weight_type, after)
