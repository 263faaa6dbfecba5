"""What the tests share: models to load, and a header that names what is tested."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import sdcpp_py
from support.checkpoints import write_checkpoint, write_lora, write_parts
from support.native_placement import NativePlacement

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def pytest_report_header() -> list[str]:
    report = sdcpp_py.doctor()
    built = report["engine"] or {}
    names = ", ".join(device["name"] for device in report["devices"])
    return [f"engine: {built.get('engine_commit')}, ggml {built.get('ggml')}; devices: {names or report['problems']}"]


def pytest_configure() -> None:
    # How long an example takes says how busy the machine is; pytest-timeout finds what hangs.
    hypothesis.settings.register_profile("sdcpp", deadline=None)
    hypothesis.settings.load_profile("sdcpp")
    # A shell's background jobs ignore Ctrl-C, and so would the children that are interrupted here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A segfault in native code names the test that was running.
    faulthandler.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One for each core that this process may use; each takes up to 1 GiB."""
    return min(len(CORES) or os.cpu_count() or 1, 8)


@pytest.fixture(scope="session", autouse=True)
def one_core(worker_id: str) -> None:
    """A core for each of several workers, with one thread to draw: more of them would wait for one another."""
    if worker_id != "master" and len(CORES) > 1:
        os.sched_setaffinity(0, {sorted(CORES)[int(worker_id.removeprefix("gw")) % len(CORES)]})


@pytest.fixture(scope="module")
def all_cores(one_core: None) -> Iterator[None]:
    """All cores for a module of tests, which is about threads."""
    if not CORES:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="session")
def stdout_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A file that standard output goes to while a test runs."""
    with (tmp_path_factory.mktemp("stdout") / "out").open("w+b") as file:
        yield file.fileno()


@pytest.fixture(autouse=True)
def nothing_on_stdout(request: pytest.FixtureRequest, stdout_file: int) -> Iterator[None]:
    """Fail a test in which native code, or a child, wrote to standard output: that is the caller's.

    What Python prints goes elsewhere while pytest captures, so that the command's own output is no matter here.
    """
    if request.config.getoption("capture") != "fd":
        yield
        return
    flush = ctypes.CDLL(None).fflush  # C's own buffers
    flush(None)
    outer = os.dup(1)
    os.dup2(stdout_file, 1)
    try:
        yield
        flush(None)
    finally:
        os.dup2(outer, 1)
        os.close(outer)
    size = os.lseek(stdout_file, 0, os.SEEK_END)
    written = os.pread(stdout_file, size, 0)
    os.ftruncate(stdout_file, 0)
    os.lseek(stdout_file, 0, os.SEEK_SET)
    assert written == b"", "the library wrote to standard output"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.x checkpoint with random weights."""
    path = tmp_path_factory.mktemp("models") / "tiny-sd1.safetensors"
    write_checkpoint("sd1", path, tiny=True)
    return path


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for the tiny checkpoint's UNet and text encoder."""
    path = tmp_path_factory.mktemp("models") / "tiny-lora.safetensors"
    write_lora(path, tiny=True)
    return path


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ControlNet, a TAE and an upscaler for the tiny checkpoint, all random."""
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder)
    return folder


@pytest.fixture(scope="session")
def sd(checkpoint: Path) -> Iterator[sdcpp_py.StableDiffusion]:
    """The tiny model, loaded once."""
    with sdcpp_py.StableDiffusion(checkpoint) as loaded:
        yield loaded


@pytest.fixture
def native_placement(monkeypatch: pytest.MonkeyPatch) -> NativePlacement:
    """The native half of placement, replaced; contexts and images are real ones, made on the CPU."""
    return NativePlacement(monkeypatch)
