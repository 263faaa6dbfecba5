"""A failed engine check is an error on every thread, never the end of the process."""

from __future__ import annotations

import ctypes
import itertools
import logging
from pathlib import Path
from typing import Any

import pytest

import sdcpp_py
from sdcpp_py import engine
from sdcpp_py.engine import Run
from support.checkpoints import write_checkpoint
from support.children import in_child
from support.loopback import Loopback

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 1, "progress": False}


def draw(sd: sdcpp_py.StableDiffusion, **more: object) -> bytes:
    return sd.txt2img("a cat", **{**SMALL, **more})[0].tobytes()  # type: ignore[arg-type]


def context(sd: sdcpp_py.StableDiffusion) -> engine.Context:
    assert sd._context is not None
    return sd._context


def test_failed_engine_check_is_an_error(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A size of 0, which the Python layer refuses, fails a GGML_ASSERT: by itself the engine ends the process."""
    sd = sdcpp_py.StableDiffusion(checkpoint)
    try:
        with pytest.raises(sdcpp_py.GenerationError) as caught:
            context(sd).image_generate({"prompt": "a", "width": 0, "height": 0})
        assert sd.closed
        with pytest.raises(sdcpp_py.ClosedError, match="an engine check failed in it"):
            draw(sd)
    finally:
        sd.close()
    assert "GGML_ASSERT" in caught.value.engine_log[-1]
    assert capfd.readouterr().err == ""


def test_cpp_exception_is_an_error_and_the_object_works_on(sd: sdcpp_py.StableDiffusion) -> None:
    before = draw(sd)
    with pytest.raises(sdcpp_py.GenerationError, match="non-negative"):
        context(sd).image_generate({"prompt": "a", "width": -64, "height": 64})
    assert draw(sd) == before


def probe(place: str, threads: int, thread: int = 0) -> tuple[int, str]:
    """Fail in a place, and return how the run ended, and its error."""
    ffi, lib = engine.library()
    function = ctypes.CDLL(str(engine.versions()["library"])).sdcpp_probe_check
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    with Run() as run:
        address = int(ffi.cast("uintptr_t", run.native))
        status = function(address, place.encode(), threads, thread)
        return status, ffi.string(lib.sdcpp_run_error(run.native)).decode()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@in_child
def test_each_kind_of_thread(threads: int) -> None:
    _, lib = engine.library()
    for place in ("caller", "loader", "thread", "inside"):
        for thread in sorted({0, 1 % threads, -1}):
            for _ in range(20):
                status, error = probe(place, threads, thread)
                assert status == lib.SDCPP_BROKEN, (place, thread)
                assert "failed on purpose" in error
                assert probe("nowhere", threads) == (lib.SDCPP_OK, ""), "whatever failed before"


NO_ROOM = [
    "out of memory",
    "hipErrorOutOfMemory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "HIPBLAS_STATUS_ALLOC_FAILED",
    "rocblas_status_memory_error",
    "the resource allocation failed",
    "the library was not initialized",
    "vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
]
OTHER = ["an illegal memory access was encountered", "unspecified launch failure", "CUBLAS_STATUS_ARCH_MISMATCH", "x"]


@in_child
def test_a_device_without_memory_inside_an_operation() -> None:
    ffi, lib = engine.library()
    function = ctypes.CDLL(str(engine.versions()["library"])).sdcpp_probe_device
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    calls = (None, b"cudaMalloc(&ptr, size)", b"cublasCreate_v2(&cublas_handles[device])")
    for text, call in itertools.product([*NO_ROOM, *OTHER], calls):
        with Run() as run:
            status = function(int(ffi.cast("uintptr_t", run.native)), text.encode(), call)
            broken = lib.SDCPP_BROKEN if call else lib.SDCPP_NO_ROOM if text in NO_ROOM else lib.SDCPP_FAILED
            assert status == broken, text
            with pytest.raises(sdcpp_py.GenerationError) as caught:
                run.check(status, sdcpp_py.GenerationError, "failed")
        assert isinstance(caught.value, sdcpp_py.DeviceMemoryError) == (text in NO_ROOM), text
        if text in NO_ROOM:
            said = f"a device has no memory left for an operation ({text}): free some of it"
            assert str(caught.value).startswith(said)


@in_child
def test_a_check_of_ggmls_own() -> None:
    _, lib = engine.library()
    status, error = probe("row", 2)
    assert status == lib.SDCPP_BROKEN
    assert "GGML_ASSERT" in error


@pytest.mark.parametrize("threads", [1, 2])
@in_child
def test_an_exception_on_a_thread(threads: int) -> None:
    _, lib = engine.library()
    assert probe("exception", threads, -1) == (lib.SDCPP_FAILED, "thrown on purpose")


@in_child
def test_an_exception_while_unwinding() -> None:
    _, lib = engine.library()
    assert probe("unwinding", 1)[0] == lib.SDCPP_OK


def assert_fails_alone(sd: sdcpp_py.StableDiffusion, checkpoint: Path, **options: Any) -> None:
    """Assert that a picture is a typed error, that its object can only be closed, and that others draw on."""
    other = sdcpp_py.StableDiffusion(checkpoint, threads=2)
    expected = draw(other)
    with pytest.raises(sdcpp_py.GenerationError) as caught:
        sd.txt2img("a cat", **{**SMALL, **options})
    assert "GGML_ASSERT" in str(caught.value.engine_log), caught.value
    assert sd.closed
    with pytest.raises(sdcpp_py.ClosedError, match="an engine check failed in it; make a new one"):
        draw(sd)
    sd.close()
    assert draw(other) == expected
    other.close()


@in_child
def test_quantized_weights_with_a_lora_merged(checkpoint: Path, lora: Path) -> None:
    """It failed a check on a thread of the team once; it is merged now."""
    with sdcpp_py.StableDiffusion(checkpoint, threads=2, weight_type="q8_0", lora_apply_mode="immediately") as sd:
        plain = draw(sd)
        assert draw(sd, loras=[lora]) != plain
        assert draw(sd) == plain


@in_child
def test_qwen_image_at_the_smallest_size(checkpoint: Path, tmp_path: Path) -> None:
    files = write_checkpoint("qwen_image", tmp_path / "model.safetensors", tiny=True)
    sd = sdcpp_py.StableDiffusion(files["model"], threads=2, kernels="engine")  # ours draw it
    assert_fails_alone(sd, checkpoint, width=8, height=8)


@in_child
def test_a_long_prompt_for_sd3(tmp_path: Path) -> None:
    """It read past the tokens of the encoder that needs fewer of them once."""
    files = write_checkpoint("sd3", tmp_path / "model.safetensors", tiny=True)
    with sdcpp_py.StableDiffusion(files["model"], threads=2) as sd:
        assert sd.txt2img("x " * 80, **SMALL)[0].tobytes() != draw(sd)


@in_child
def test_a_sick_device_is_reported() -> None:
    loopback = Loopback(devices=2)
    loopback.set(device=1, sick=1)
    well, sick = (device for device in sdcpp_py.devices() if device.name.startswith("Loopback"))
    assert (well.problem, sick.problem) == (None, "GGML_ASSERT(device.config.sick == 0) failed")
    assert (sick.memory_total, sick.memory_free) == (0, 0)
    assert well.memory_total > 0
    (problem,) = sdcpp_py.doctor()["problems"]
    assert problem.startswith("Loopback1 does not answer: GGML_ASSERT")


@in_child
def test_a_model_on_a_sick_device_is_given_up(checkpoint: Path) -> None:
    loopback = Loopback(devices=2)
    lines: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    well = sdcpp_py.StableDiffusion(checkpoint, runtime_backend="loopback0")
    expected = draw(well)
    for way in ("close", "draw"):
        sd = sdcpp_py.StableDiffusion(checkpoint, runtime_backend="loopback1")
        assert draw(sd) == expected
        loopback.set(device=1, sick=1)
        logging.getLogger("sdcpp_py.engine").addHandler(handler)
        if way == "draw":
            with pytest.raises(sdcpp_py.GenerationError):
                draw(sd)
            assert sd.closed
        sd.close()
        logging.getLogger("sdcpp_py.engine").removeHandler(handler)
        assert sum("does not answer any more" in line for line in lines) == 1, lines
        lines.clear()
        assert draw(well) == expected
        loopback.set(device=1, sick=0)
    well.close()


@in_child
def test_loading_onto_a_sick_device_is_an_error(checkpoint: Path) -> None:
    loopback = Loopback()
    loopback.set(sick=1)
    with pytest.raises(sdcpp_py.SdcppError):
        sdcpp_py.StableDiffusion(checkpoint)
    loopback.set(sick=0)
    with sdcpp_py.StableDiffusion(checkpoint) as sd:
        assert draw(sd)
