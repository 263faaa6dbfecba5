"""The copy queue and the executor: copies and computations keep their order, with or without a second stream.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from support.children import in_child
from support.denoiser_probe import MODELS, Probe, header_only, probe_library
from support.loopback import Loopback
from support.placed_model import Model, assert_empty
from support.streaming import DIFFUSION, GIB, budget_bytes, draw_on_cpu, steps, streams

DEGRADED: dict[str, tuple[dict[str, float], str]] = {
    "no asynchronous copies": ({"async": 0}, "does not copy asynchronously"),
    "no events": ({"events": 0}, "has no events"),
    "every event refused": ({"refuse_event": 1, "refuse_event_count": -1}, "refused an event"),
    "some events refused": ({"refuse_event": 5, "refuse_event_count": 1}, "refused an event"),
    "one stream": ({"max_streams": 1}, "gives no second stream"),
    "no host buffers": ({"host_buffer": 0}, ""),
    "small buffers": ({"max_buffer_size": 1 << 20}, ""),
}


@in_child
def test_what_is_missing_degrades(checkpoint: Path) -> None:
    loopback = Loopback()
    given = steps(3, 1.0)
    expected = draw_on_cpu(checkpoint, **given)
    for name, (missing, reason) in DEGRADED.items():
        usual = {option: loopback.get(option) for option in missing}
        loopback.set(**missing)
        with Model(checkpoint, DIFFUSION, max_vram=0.008) as model:
            loopback.reset()
            assert model.draw(**given) == expected, name
            (row,) = streams(model).values()
            assert row["streamed_bytes"] > 0
            assert reason in row["reason"]
            assert row["mode"] == ("in turn" if reason else "overlapped"), name
            assert loopback.books()["device_bytes_peak"] <= budget_bytes(0.008)
        loopback.set(**usual)
        assert_empty(loopback)


# What is left out: a wait, that values in the compute buffer are in the way of slots, or that other lanes read one, too
# -> LOOPBACK_READ_BEFORE_ARRIVAL, ...
LEFT_OUT = {"arrival": 1, "reader": 2, "load": 1, "height": 2, "last lane": 2}


@pytest.mark.parametrize("precaution", LEFT_OUT)
@in_child
def test_broken_order_is_found(precaution: str, checkpoint: Path) -> None:
    """A build for tests can leave out a precaution: the accelerator sees it, whatever the pixels say."""
    os.environ["SDCPP_LEAVE_OUT"] = precaution
    loopback = Loopback(dry=1)  # what it would compute could be no number, at which a debug build of ggml stops
    with Model(checkpoint, DIFFUSION, max_vram=0.0075) as model:
        model.draw(**steps(3))
    found = {kind: loopback.lib.loopback_violation_count(kind) for kind in range(1, 8)}
    assert found[LEFT_OUT[precaution]] > 0, found


@in_child
def test_the_bus_is_timed_on_enough_bytes() -> None:
    """The first residents of SDXL are small: copying them tells how long a copy takes to begin, not the bus's speed."""
    bandwidth = 25e9
    loopback = Loopback(dry=1, memory_total=1 << 40, pinned_bandwidth=bandwidth)
    ffi, lib = probe_library()
    now = ffi.callback("double(void)", lambda: loopback.clock()["host_seconds"])
    lib.sdcpp_probe_clock(now)
    with header_only(MODELS["SDXL"]) as path:
        probe = Probe(loopback, lib, ffi, path, MODELS["SDXL"], "overlapped", True)
        probe.begin(4 * GIB)
        probe.step(3)
        row = probe.stream()
        probe.close()
    lib.sdcpp_probe_clock(ffi.NULL)
    assert row["streamed_bytes"] > 0
    assert 1 <= row["copy_seconds"] * bandwidth / row["streamed_bytes"] < 1.3


def schedules(count: int, seed: int) -> None:
    """Compute denoisers of full size, without bytes, with everything random that decides the order of copies."""
    loopback = Loopback(dry=1, memory_total=1 << 40)
    ffi, lib = probe_library()
    choose = random.Random(seed)
    overlapped = 0
    with header_only(MODELS["SD 1.5"]) as path:
        for number in range(count):
            loopback.set(
                pinned_bandwidth=10 ** choose.uniform(8, 12),
                pageable_bandwidth=10 ** choose.uniform(8, 12),
                flop_rate=10 ** choose.uniform(11, 15),
                copy_latency=choose.choice((0.0, 1e-6, 1e-3)),
                graph_latency=choose.choice((0.0, 1e-6, 1e-3)),
                op_latency=choose.choice((0.0, 1e-6, 1e-4)),
                max_buffer_size=choose.choice((0, 0, 0, 200 << 20)),
                **{"async": int(choose.random() > 0.05), "events": int(choose.random() > 0.05)},
            )  # fmt: skip
            probe = Probe(loopback, lib, ffi, path, MODELS["SD 1.5"], "overlapped", choose.random() > 0.3)
            for _ in range(2):
                budget = int(choose.choice((choose.uniform(0.12, 1.8), choose.uniform(0.12, 0.4))) * GIB)
                probe.begin(budget)
                passes = choose.choice((1, 1, 2, 3))
                sizes = [(64 * choose.randint(1, 6), 64 * choose.randint(1, 6)) for _ in range(choose.randint(1, 2))]
                for width, height in [choose.choice(sizes) for _ in range(choose.randint(1, 4))]:
                    assert lib.sdcpp_probe_step(probe.handle, width, height, 77, passes), (number, budget)
                books = loopback.books()
                assert books["violations"] == 0, (number, budget)
                assert books["device_bytes_peak"] <= budget_bytes(budget / GIB), (number, budget)
                overlapped += probe.stream()["mode"] == ffi.NULL or ffi.string(probe.stream()["mode"]) == b"overlapped"
            probe.close()
            assert_empty(loopback)
    print(f"{count} schedules, {overlapped} of {2 * count} generations overlapped")
    assert overlapped > count / 2


@in_child
def test_random_schedules_keep_the_order() -> None:
    schedules(25, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@in_child
def test_many_random_schedules_keep_the_order() -> None:
    schedules(500, seed=2)  # of two generations each
