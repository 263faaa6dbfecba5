"""A process that draws for long holds no more for it: what is kept for graphs, LoRAs and models has a bound."""

from __future__ import annotations

import ctypes
import os
import random
from typing import Any

import pytest

import sdcpp_py
from sdcpp_py import engine
from support.children import in_child
from support.loopback import Loopback
from support.memory import allocated_bytes, assert_no_leak, give_back_at_once, resident_bytes
from support.placed_model import assert_empty

STREAMED: dict[str, Any] = {
    "runtime_backend": "loopback0",
    "params_backend": "cpu",
    "stream_layers": True,
    "max_vram": 0.052,
}


@in_child
def test_shapes_of_graphs_that_are_kept_have_a_bound() -> None:
    sdcpp_py.devices()
    library = ctypes.CDLL(str(engine.versions()["library"]))
    assert library.sdcpp_probe_shapes(5) == 6
    assert library.sdcpp_probe_shapes(500) == 16


def draw_any(sd: sdcpp_py.StableDiffusion, chance: random.Random, count: int) -> None:
    """Draw pictures of random sizes, with prompts of random lengths."""
    for _ in range(count):
        sd.txt2img(
            "a red circle " * chance.randrange(1, 40),
            width=64 * chance.randrange(1, 5),
            height=64 * chance.randrange(1, 5),
            steps=1,
            cfg_scale=chance.choice((1.0, 4.0)),
            seed=chance.randrange(1 << 31),
            progress=False,
        )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("streamed", [False, True])
@in_child
def test_two_thousand_pictures_of_random_sizes(streamed: bool) -> None:
    """The process is as large after them as after the first two hundred."""
    give_back_at_once()
    if streamed:
        Loopback()
    given = STREAMED if streamed else {}
    chance = random.Random(1)
    with sdcpp_py.StableDiffusion(threads=2, **given) as sd:
        draw_any(sd, chance, 200)
        before, given_before = resident_bytes(), allocated_bytes()
        for _ in range(9):
            draw_any(sd, chance, 200)
        grown, more = resident_bytes() - before, allocated_bytes() - given_before
    assert more < 2 << 20, f"{more} bytes more of malloc's"
    assert grown < max(0.02 * before, 4 << 20), f"{grown} bytes more resident"


WAYS: tuple[dict[str, Any], ...] = (
    {**STREAMED, "max_vram": 0.006, "params_backend": {"diffusion": "cpu", "all": "loopback0"}},  # lanes
    {"runtime_backend": "loopback0", "params_backend": "disk", "pin_budget": 0.0, "max_vram": 0.02},
    {"runtime_backend": "loopback0", "params_backend": "disk", "pin_budget": 0.064},  # some of it in host memory
    {"runtime_backend": "loopback0", "params_backend": "cpu", "pin_params": "require"},  # locked in parts
    {},  # as the planner says
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@in_child
def test_two_hundred_cycles() -> None:
    """Load, draw, cancel, close, with weights in every place in turn: nothing is left, on the device or in the host."""
    os.environ["SDCPP_PART_BYTES"] = str(1 << 20)
    loopback = Loopback(lock_pages=1, memory_total=1 << 30)
    give_back_at_once()
    chance = random.Random(1)
    cancelled = [0] * len(WAYS)

    def cycle(way: int, ends: int) -> None:
        """Stop at the event of a number, if there are so many."""
        heard = 0

        def hear(event: sdcpp_py.ProgressEvent) -> None:
            nonlocal heard
            heard += 1
            if heard == ends:
                raise InterruptedError

        try:
            with sdcpp_py.StableDiffusion(threads=1, progress=hear, **WAYS[way]) as sd:
                sd.txt2img("a red circle", width=64, height=64, steps=3, cfg_scale=4.0, batch_count=2)
                if way == 0:
                    assert max(row.lanes for row in sd.transfer_report().streams) > 1
                elif way < 3:
                    assert sd.transfer_report().total.from_disk_bytes > 0
        except InterruptedError:
            cancelled[way] += 1

    before: tuple[int, int, int] = (0, 0, 0)
    for number in range(200):
        way = number % len(WAYS)
        cycle(way, chance.randrange(1, 30) if number % 3 else 0)
        assert_empty(loopback)
        if number == 49:
            before = resident_bytes(), allocated_bytes(), len(os.listdir("/proc/self/fd"))
    grown = resident_bytes() - before[0], allocated_bytes() - before[1]
    assert all(cancelled), cancelled
    assert len(os.listdir("/proc/self/fd")) == before[2]
    assert len(os.listdir("/proc/self/task")) <= 8
    assert grown[1] < 1 << 20, f"{grown[1]} bytes more of malloc's; cancelled {cancelled}"
    assert grown[0] < max(0.02 * before[0], 4 << 20), f"{grown[0]} bytes more resident"


@in_child
def test_opening_and_closing() -> None:
    give_back_at_once()

    def cycle() -> None:
        with sdcpp_py.StableDiffusion() as sd:
            sd.txt2img("a", width=16, height=16, steps=1, progress=False)

    assert_no_leak(cycle, cycles=8, limit=2 << 20)
