"""Calls of several objects: each has its own log, progress, errors and cancel, and they take turns on a device."""

from __future__ import annotations

import functools
import gc
import logging
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sdcpp_py
from sdcpp_py import ProgressEvent, engine
from support.children import in_child
from support.loopback import Loopback
from support.memory import allocated_bytes, give_back_at_once, resident_bytes

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 1, "progress": False}
LONG = {"width": 64, "height": 64, "steps": 5000, "seed": 1}
SECONDS = 60.0


def draw(sd: sdcpp_py.StableDiffusion, **more: object) -> bytes:
    return sd.txt2img("a cat", **{**SMALL, **more})[0].tobytes()  # type: ignore[arg-type]


def in_threads(*functions: Callable[[], object], seconds: float = SECONDS) -> list[object]:
    """Call functions at the same time, and return what they return or raise."""
    found: list[object] = [None] * len(functions)

    def work(index: int) -> None:
        try:
            found[index] = functions[index]()
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive()
    return found


def test_a_callback_sees_its_own_call_alone(sd: sdcpp_py.StableDiffusion, checkpoint: Path) -> None:
    seen: dict[int, list[tuple[int, int]]] = {3: [], 4: []}
    with sdcpp_py.StableDiffusion(checkpoint) as other:

        def work(model: sdcpp_py.StableDiffusion, steps: int) -> bytes:
            return draw(model, steps=steps, progress=lambda event: seen[steps].append((event.step, event.steps)))

        in_threads(lambda: work(sd, 3), lambda: work(other, 4))
    for steps, calls in seen.items():
        assert [step for step, of in calls if of == steps] == list(range(steps + 1))


def test_first_come_first_served(sd: sdcpp_py.StableDiffusion, checkpoint: Path) -> None:
    order: list[int] = []
    begun = threading.Event()
    with sdcpp_py.StableDiffusion(checkpoint) as other, sdcpp_py.StableDiffusion(checkpoint) as third:

        def occupy() -> None:
            with pytest.raises(sdcpp_py.CancelledError):
                draw(third, **{**LONG, "progress": lambda *_: begun.set()})

        def wait(number: int) -> None:
            draw((sd, other)[number % 2], steps=1, progress=lambda event: event.phase == "done" or order.append(number))

        threads = [threading.Thread(target=occupy)]
        threads[0].start()
        begun.wait(SECONDS)
        for number in range(4):
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            time.sleep(0.1)
        assert order == []
        third.cancel()
        for thread in threads:
            thread.join(SECONDS)
    assert set(order) == {0, 1, 2, 3}
    assert sorted(order) == order


def test_tap_in_a_callback(sd: sdcpp_py.StableDiffusion) -> None:
    """It concerns the calls that are made inside it, of which there can be none here."""
    taps: list[str] = []

    def tap(event: ProgressEvent) -> None:
        with engine.tap(lambda phase, shape, values: taps.append(phase)):
            pass

    assert draw(sd, progress=tap)
    assert taps == []


def test_tap_is_of_its_own_thread(sd: sdcpp_py.StableDiffusion) -> None:
    taps: list[str] = []
    with engine.tap(lambda phase, shape, values: taps.append(phase)):
        in_threads(lambda: draw(sd))
        assert taps == []
        draw(sd)
    assert taps


# --- two devices ------------------------------------------------------------------------------------------------------


def pair(checkpoint: Path, **options: Any) -> list[sdcpp_py.StableDiffusion]:
    return [sdcpp_py.StableDiffusion(checkpoint, runtime_backend=f"loopback{index}", **options) for index in (0, 1)]


@in_child
def test_two_devices_work_at_the_same_time(checkpoint: Path) -> None:
    """Each call waits in its callback for one of the other's: in turns, neither would come."""
    Loopback(devices=2)
    models = pair(checkpoint)
    expected = draw(models[0])
    begun = [threading.Event(), threading.Event()]

    def work(index: int) -> bytes:
        def meet(event: ProgressEvent) -> None:
            begun[index].set()
            if not begun[1 - index].wait(SECONDS):
                raise TimeoutError

        return draw(models[index], progress=meet)

    assert in_threads(lambda: work(0), lambda: work(1)) == [expected, expected]
    for model in models:
        model.close()


@in_child
def test_each_of_two_devices_has_its_own_call(checkpoint: Path) -> None:
    """Log lines, progress, errors, cancel: of 20 calls at once on each device, some are cancelled, some raise."""
    loopback = Loopback(devices=2)
    models = pair(checkpoint)
    expected = draw(models[0])

    def one(index: int, end: str, steps: int) -> None:
        error = LookupError(f"of device {index}")
        thread = threading.get_ident()
        seen: set[int] = set()

        def watch(event: ProgressEvent) -> None:
            assert threading.get_ident() == thread
            seen.add(event.steps)
            if event.step == 1 and end == "cancel":
                models[index].cancel()
            if event.step == 1 and end == "raise":
                raise error

        loopback.set(device=index, throw_at_graph=3 if end == "fail" else 0)
        try:
            pixels = draw(models[index], steps=steps, progress=watch)
            assert end == "draw", end
            assert steps != 2 or pixels == expected
        except LookupError as caught:
            assert caught is error
        except sdcpp_py.CancelledError:
            assert end == "cancel", end
        except sdcpp_py.GenerationError as caught:
            assert end == "fail", end
            assert "the loopback accelerator was told to throw" in str(caught.engine_log)
        loopback.set(device=index, throw_at_graph=0)
        assert seen <= {steps, 0}, "steps of another call"

    def work(index: int) -> int:
        choose = random.Random(index)
        for _ in range(20):
            one(index, choose.choice(("draw", "cancel", "raise", "fail")), choose.randint(2, 5))
        return 20

    assert in_threads(lambda: work(0), lambda: work(1)) == [20, 20]
    for model in models:
        assert draw(model) == expected
        model.close()


@in_child
def test_log_lines_are_their_calls(checkpoint: Path) -> None:
    Loopback(devices=2)
    models = pair(checkpoint)
    threads: dict[str, set[int]] = {}

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if "img_gen" in message or "generate_image" in message or "generating image" in message:
                threads.setdefault(message, set()).add(threading.get_ident())

    logging.getLogger("sdcpp_py.engine").addHandler(Lines())
    logging.getLogger("sdcpp_py.engine").setLevel(logging.DEBUG)
    found = in_threads(lambda: draw(models[0], width=64), lambda: draw(models[1], width=128))
    assert [len(pixels) for pixels in found if isinstance(pixels, bytes)] == [64 * 64 * 3, 128 * 64 * 3]
    assert any("64x64" in message for message in threads)
    assert all(len(ids) == 1 for message, ids in threads.items() if "64x64" in message or "128x64" in message)
    for model in models:
        model.close()


@in_child
def test_another_device_can_be_used_in_a_callback(checkpoint: Path) -> None:
    Loopback(devices=2)
    models = pair(checkpoint)
    expected = draw(models[1])
    inner: list[bytes] = []
    outer = draw(models[0], progress=lambda event: event.steps and inner.append(draw(models[1])))
    assert outer == expected
    assert set(inner) == {expected}
    for model in models:
        model.close()


@in_child
def test_objects_that_share_one_of_two_devices_take_turns(checkpoint: Path) -> None:
    Loopback(devices=2)
    alone = sdcpp_py.StableDiffusion(checkpoint, runtime_backend="loopback0")
    both = sdcpp_py.StableDiffusion(checkpoint, runtime_backend="te=loopback0,all=loopback1")
    begun, done = threading.Event(), threading.Event()

    def first(event: ProgressEvent) -> None:
        if event.phase == "done":
            return
        begun.set()
        assert not done.wait(0.2)

    def second() -> None:
        begun.wait(SECONDS)
        draw(both)
        done.set()

    results = in_threads(lambda: draw(alone, steps=3, progress=first), second)
    assert isinstance(results[0], bytes), results
    assert done.is_set()
    alone.close()
    both.close()


# --- everything at once -----------------------------------------------------------------------------------------------


def interleave(checkpoint: Path, count: int, seed: int, rounds: int = 2) -> None:
    """Draw, cancel, close, raise and collect in random order on 4 threads with 3 objects: nothing grows."""
    warnings.simplefilter("ignore", ResourceWarning)
    give_back_at_once()
    models = [sdcpp_py.StableDiffusion(checkpoint, threads=1) for _ in range(3)]
    expected = draw(models[0])
    cancelled = [0, 0, 0]  # how often each object was
    lock = threading.Lock()
    left = [count]

    def held() -> tuple[int, int]:
        """What malloc gave and what is resident, with three new objects that have drawn once each."""
        for model in models:
            model.close()
        for index in range(3):
            models[index] = sdcpp_py.StableDiffusion(checkpoint, threads=1)
            assert draw(models[index]) == expected
        return allocated_bytes(), resident_bytes()

    def act(action: str, index: int, number: int) -> None:
        model = models[index]

        def watch(event: ProgressEvent) -> None:
            if action == "raise" and event.step == 1:
                raise LookupError(number)
            if action == "close inside":
                model.close()

        try:
            if action == "cancel":
                with lock:
                    cancelled[index] += 1
                model.cancel()
                return
            if action in ("close", "collect", "close inside"):
                models[index] = sdcpp_py.StableDiffusion(checkpoint, threads=1)
            if action == "close":
                model.close()
            elif action != "collect":
                pixels = draw(model, progress=watch)
                assert action != "raise"
                assert pixels == expected, "wrong pixels"
        except LookupError as error:
            assert error.args == (number,), "what a callback raised went to another call"
        except sdcpp_py.CancelledError:
            assert cancelled[index] > 0, "cancelled by nobody"
        except sdcpp_py.ClosedError:
            assert model.closed

    def work(number: int) -> int:
        choose = random.Random(seed * 10 + number)
        weights = {"draw": 8, "cancel": 3, "raise": 2, "close": 1, "collect": 1, "close inside": 1}
        done = 0
        while True:
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    return done
            act(choose.choices(list(weights), list(weights.values()))[0], choose.randrange(3), number)
            gc.collect()
            done += 1

    def round_of(actions: int) -> None:
        left[0] = actions
        work_of_each = [functools.partial(work, number) for number in range(4)]
        results = in_threads(*work_of_each, seconds=actions * 2.0)
        assert sum(result for result in results if isinstance(result, int)) == actions, results

    allocated, resident = [], []
    for _ in range(rounds):
        round_of(count // rounds)
        for values, value in zip((allocated, resident), held(), strict=True):
            values.append(value)
    for bytes_now in allocated[1:]:
        assert abs(bytes_now - allocated[0]) < 0.001 * allocated[0], allocated
    # What is resident goes up and down by a tenth, as malloc puts partly used pieces here or there; it does not grow.
    if rounds >= 4:
        assert min(resident[rounds // 2 :]) < 1.02 * max(resident[: rounds // 2]), resident
    for model in models:
        model.close()


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@in_child
def test_random_interleavings(checkpoint: Path) -> None:
    interleave(checkpoint, 40, seed=1)


@linux
@pytest.mark.slow
@in_child
def test_many_random_interleavings(checkpoint: Path) -> None:
    interleave(checkpoint, 1000, seed=2, rounds=8)
