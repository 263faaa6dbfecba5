"""One owner of a model: when it is closed, cancelled, copied and collected, whoever else is at work."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sdcpp_py
from sdcpp_py import ProgressEvent
from support.memory import allocated_bytes, assert_no_leak

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 1, "progress": False}
LONG = {"width": 64, "height": 64, "steps": 5000, "seed": 1}
SECONDS = 60.0


def draw(sd: sdcpp_py.StableDiffusion, **more: object) -> bytes:
    return sd.txt2img("a cat", **{**SMALL, **more})[0].tobytes()  # type: ignore[arg-type]


class Drawing:
    """A call in a thread of its own, and how it ended."""

    def __init__(self, sd: sdcpp_py.StableDiffusion, **options: object) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.pixels: bytes | None = None
        self.thread = threading.Thread(target=self.work, args=(sd, options))
        self.thread.start()

    def work(self, sd: sdcpp_py.StableDiffusion, options: dict[str, object]) -> None:
        try:
            self.pixels = draw(sd, **{**LONG, "progress": lambda *_: self.begun.set(), **options})
        except BaseException as error:
            self.error = error
        finally:
            self.begun.set()
            self.ended.set()

    def join(self) -> Drawing:
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        return self


@pytest.fixture
def other(checkpoint: Path) -> Iterator[sdcpp_py.StableDiffusion]:
    """A second object on the same device."""
    with sdcpp_py.StableDiffusion(checkpoint) as made:
        yield made


@pytest.fixture
def busy(sd: sdcpp_py.StableDiffusion, other: sdcpp_py.StableDiffusion) -> Iterator[Drawing]:
    """A long call of the first object, which has the device; the other one is loaded by then."""
    drawing = Drawing(sd)
    assert drawing.begun.wait(SECONDS)
    yield drawing
    sd.cancel()
    drawing.join()


def waiting(sd: sdcpp_py.StableDiffusion) -> Drawing:
    """Begin a call that has to wait for its turn."""
    drawing = Drawing(sd)
    time.sleep(0.2)
    assert not drawing.ended.is_set()
    return drawing


def test_cancel_leaves_other_objects_alone(busy: Drawing, other: sdcpp_py.StableDiffusion) -> None:
    other.cancel()
    time.sleep(0.3)
    assert not busy.ended.is_set()


def test_a_waiting_call_is_cancelled(busy: Drawing, other: sdcpp_py.StableDiffusion) -> None:
    drawing = waiting(other)
    other.cancel()
    assert isinstance(drawing.join().error, sdcpp_py.CancelledError)
    assert not busy.ended.is_set(), "whose turn it is draws on"


def test_close_ends_a_waiting_call(busy: Drawing, other: sdcpp_py.StableDiffusion) -> None:
    drawing = waiting(other)
    closing = threading.Thread(target=other.close)
    closing.start()
    assert isinstance(drawing.join().error, sdcpp_py.ClosedError)
    assert other.closed
    assert not busy.ended.is_set()
    closing.join(0.1)
    assert closing.is_alive(), "its memory cannot be freed while the device is in use"


def test_close_waits_for_a_call(checkpoint: Path) -> None:
    sd = sdcpp_py.StableDiffusion(checkpoint)
    drawing = Drawing(sd, steps=30)
    drawing.begun.wait(SECONDS)
    sd.close()
    assert drawing.ended.wait(1)
    assert drawing.join().pixels is not None


def test_close_while_arguments_are_converted(checkpoint: Path) -> None:
    sd = sdcpp_py.StableDiffusion(checkpoint)

    class Steps:
        def __index__(self) -> int:
            sd.close()
            return 2

    with pytest.raises(sdcpp_py.ClosedError, match="it was closed"):
        draw(sd, steps=Steps())


def test_close_in_a_callback_takes_effect_after_the_call(checkpoint: Path) -> None:
    sd = sdcpp_py.StableDiffusion(checkpoint)
    expected = draw(sd)
    seen = []

    def close(event: ProgressEvent) -> None:
        sd.close()
        seen.append(sd.closed)

    assert draw(sd, progress=close) == expected
    assert seen
    assert all(seen)
    with pytest.raises(sdcpp_py.ClosedError, match="it was closed"):
        draw(sd)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("action", ["close", "cancel"])
def test_signal_handler(checkpoint: Path, action: str) -> None:
    sd = sdcpp_py.StableDiffusion(checkpoint)
    before = signal.signal(signal.SIGUSR1, lambda *_: getattr(sd, action)())
    try:
        sent = []

        def send(event: ProgressEvent) -> None:
            if not sent:
                sent.append(os.kill(os.getpid(), signal.SIGUSR1))

        if action == "close":
            assert draw(sd, steps=5, progress=send)
            assert sd.closed
        else:
            with pytest.raises(sdcpp_py.CancelledError):
                draw(sd, **{**LONG, "progress": send})
            assert draw(sd)
    finally:
        signal.signal(signal.SIGUSR1, before)
        sd.close()


def test_keyboard_interrupt_ends_a_waiting_call(busy: Drawing, other: sdcpp_py.StableDiffusion) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            draw(other)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not busy.ended.is_set()


def test_objects_on_one_device_are_not_called_from_a_callback(
    sd: sdcpp_py.StableDiffusion, other: sdcpp_py.StableDiffusion
) -> None:
    for inner in (sd, other):

        def again(event: ProgressEvent, inner: sdcpp_py.StableDiffusion = inner) -> None:
            draw(inner)

        with pytest.raises(sdcpp_py.ArgumentError, match="one of its own callbacks"):
            draw(sd, progress=again)


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_copies_are_refused(sd: sdcpp_py.StableDiffusion, copies: Callable[[object], object]) -> None:
    for owner in (sd, sd._context):
        with pytest.raises(sdcpp_py.ArgumentError, match="cannot be copied or pickled"):
            copies(owner)
    assert not sd.closed


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_load_draw_close_leaks_nothing(checkpoint: Path) -> None:
    def cycle() -> None:
        with sdcpp_py.StableDiffusion(checkpoint) as sd:
            draw(sd, steps=1)

    assert_no_leak(cycle)


@linux
def test_failed_loads_leak_nothing(tmp_path: Path) -> None:
    cut = tmp_path / "model.gguf"
    cut.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 64)

    def attempt() -> None:
        with pytest.raises(sdcpp_py.ModelError):
            sdcpp_py.StableDiffusion(cut)

    assert_no_leak(attempt, 50, 4 << 20)


@linux
def test_close_in_a_callback_leaks_nothing(checkpoint: Path) -> None:
    def cycle() -> None:
        sd = sdcpp_py.StableDiffusion(checkpoint)
        draw(sd, steps=1, progress=lambda *_: sd.close())

    assert_no_leak(cycle, 4)


@linux
def test_collection_in_a_callback_leaks_nothing(sd: sdcpp_py.StableDiffusion, checkpoint: Path) -> None:
    """An object that is in a cycle is collected on whatever thread allocates: here, inside another object's call."""

    def cycle() -> None:
        lost = [sdcpp_py.StableDiffusion(checkpoint)]
        lost.append(lost)  # type: ignore[arg-type]
        del lost
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            draw(sd, progress=lambda event: event.step == 1 and gc.collect())

    assert_no_leak(cycle, 4)


@linux
@pytest.mark.parametrize("function", ["sdcpp_ctx_load", "sdcpp_ctx_new"])
def test_interrupt_after_loading_leaks_nothing(checkpoint: Path, function: str) -> None:
    """Ctrl-C right when the native function has returned, before the next bytecode."""

    def interrupt(frame: object, event: str, called: object) -> None:
        if event == "c_return" and getattr(called, "__name__", "") == function:
            raise KeyboardInterrupt

    def cycle() -> None:
        sys.setprofile(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                sdcpp_py.StableDiffusion(checkpoint)
        finally:
            sys.setprofile(None)

    assert_no_leak(cycle, 4)


@linux
def test_interrupt_after_drawing_leaks_nothing(sd: sdcpp_py.StableDiffusion) -> None:
    wide, high, cycles = 256, 128, 4

    def interrupt(frame: object, event: str, called: object) -> None:
        if event == "c_return" and getattr(called, "__name__", "") == "sdcpp_image_generate":
            raise KeyboardInterrupt

    def cycle() -> None:
        sys.setprofile(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                draw(sd, width=wide, height=high, steps=1)
        finally:
            sys.setprofile(None)
        assert len(draw(sd)) == 64 * 64 * 3, "the turn has ended too"

    cycle()
    before = allocated_bytes()
    for _ in range(cycles):
        cycle()
    assert allocated_bytes() - before < cycles * wide * high * 3 / 2, "half of what the pictures take"
