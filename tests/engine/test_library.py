"""What the engine calls back: progress, taps, log lines, signal handlers, and what they raise."""

from __future__ import annotations

import io
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import ProgressEvent, engine

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 1, "progress": False}
LONG = {"width": 64, "height": 64, "steps": 5000, "seed": 1}


def draw(sd: sdcpp_py.StableDiffusion, **more: object) -> bytes:
    return sd.txt2img("a cat", **{**SMALL, **more})[0].tobytes()  # type: ignore[arg-type]


def test_progress_counts_the_steps(sd: sdcpp_py.StableDiffusion) -> None:
    seen: list[ProgressEvent] = []
    sd.txt2img("a", width=64, height=64, steps=3, seed=1, progress=seen.append)
    assert [event.step for event in seen if event.steps == 3] == [0, 1, 2, 3]


def test_exception_in_a_callback_reaches_the_caller(
    sd: sdcpp_py.StableDiffusion, capfd: pytest.CaptureFixture[str]
) -> None:
    before = draw(sd)
    calls = 0

    def fail(event: ProgressEvent) -> None:
        nonlocal calls
        calls += 1
        if event.step == 2:
            raise LookupError("from the callback")

    with pytest.raises(LookupError, match="from the callback"):
        sd.txt2img("a", **{**LONG, "progress": fail})  # type: ignore[arg-type]
    assert calls <= 6, "the run was cancelled at once"
    assert capfd.readouterr().err == ""
    assert draw(sd) == before, "the object works on"


def test_tap_sees_every_output(sd: sdcpp_py.StableDiffusion) -> None:
    before = draw(sd)
    seen: list[tuple[str, tuple[int, ...]]] = []

    def tap(phase: str, shape: tuple[int, ...], values: bytes) -> None:
        assert np.isfinite(np.frombuffer(values, np.float32).reshape(shape)).all()
        seen.append((phase, shape))

    with engine.tap(tap):
        assert draw(sd, cfg_scale=1.0) != before
    text, latents, pixels = ("text", (1, 1, 77, 64)), ("sampling", (1, 4, 8, 8)), ("decoding", (1, 3, 64, 64))
    assert seen == [text, latents, latents, pixels]
    assert draw(sd) == before
    assert len(seen) == 4, "nothing is seen after the block"


def test_exception_in_a_tap_reaches_the_caller(sd: sdcpp_py.StableDiffusion, capfd: pytest.CaptureFixture[str]) -> None:
    before = draw(sd)
    calls = []

    def fail(phase: str, shape: tuple[int, ...], values: bytes) -> None:
        calls.append(phase)
        if phase == "sampling":
            raise LookupError("from the tap")

    with engine.tap(fail), pytest.raises(LookupError, match="from the tap"):
        sd.txt2img("a", **LONG)  # type: ignore[arg-type]
    assert calls.count("sampling") == 1, "the run was cancelled at once"
    assert capfd.readouterr().err == ""
    assert draw(sd) == before, "the object works on"


def test_cancel_from_another_thread(sd: sdcpp_py.StableDiffusion) -> None:
    before = draw(sd)
    timer = threading.Timer(0.3, sd.cancel)
    timer.start()
    start = time.monotonic()
    with pytest.raises(sdcpp_py.CancelledError):
        sd.txt2img("a", **LONG)  # type: ignore[arg-type]
    timer.join()
    assert time.monotonic() - start < 60
    assert draw(sd) == before


def test_cancel_with_nothing_under_way_does_nothing(sd: sdcpp_py.StableDiffusion) -> None:
    sd.cancel()
    assert len(draw(sd)) == 64 * 64 * 3


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_keyboard_interrupt_stops_within_a_step(checkpoint: Path) -> None:
    """In a process of its own: the signal goes to the main thread, while the engine runs in it."""
    code = f"""
import os, signal, threading, time, sdcpp_py
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs of a shell
sd = sdcpp_py.StableDiffusion({str(checkpoint)!r})
small = dict(width=64, height=64, steps=2, seed=1)
before = sd.txt2img("a", **small)[0].tobytes()
steps = []
def stop():
    while len(steps) < 3: time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=stop).start()
try:
    sd.txt2img("a", width=64, height=64, steps=5000, seed=1, progress=lambda event: steps.append(event.step))
except KeyboardInterrupt:
    print("interrupted after", len(steps))
assert len(steps) < 200, steps[-1]
assert sd.txt2img("a", **small)[0].tobytes() == before
sd.close()
print("works on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "interrupted after" in done.stdout
    assert "works on" in done.stdout
    assert done.stderr == ""


def test_threads_take_turns(sd: sdcpp_py.StableDiffusion) -> None:
    expected = {seed: draw(sd, seed=seed) for seed in (1, 2)}
    found: dict[int, bytes] = {}

    def work(seed: int) -> None:
        found[seed] = draw(sd, seed=seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_python_runs_while_the_engine_works(sd: sdcpp_py.StableDiffusion) -> None:
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        start = time.monotonic()
        draw(sd, steps=10)
        seconds = time.monotonic() - start
    finally:
        done.set()
        thread.join()
    assert ticks > seconds * 20, "the interpreter's lock was held"


def test_log_lines_go_to_logging(sd: sdcpp_py.StableDiffusion, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="sdcpp_py.engine"):
        draw(sd)
    levels = {record.levelno for record in caplog.records if record.name == "sdcpp_py.engine"}
    assert logging.INFO in levels
    assert any("generate_image" in record.message for record in caplog.records)


def test_nothing_is_printed(sd: sdcpp_py.StableDiffusion, capfd: pytest.CaptureFixture[str]) -> None:
    draw(sd)
    assert capfd.readouterr() == ("", "")


def test_signal_handlers_are_left_alone(sd: sdcpp_py.StableDiffusion) -> None:
    before = signal.getsignal(signal.SIGINT)
    draw(sd)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("progress", [None, True])
def test_a_process_without_standard_error(
    sd: sdcpp_py.StableDiffusion, monkeypatch: pytest.MonkeyPatch, progress: bool | None
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert len(sd.txt2img("a", **{**SMALL, "progress": progress})) == 1


def test_standard_error_that_is_closed_or_no_stream_at_all(
    sd: sdcpp_py.StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, object()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert len(sd.txt2img("a", **{**SMALL, "progress": None})) == 1
