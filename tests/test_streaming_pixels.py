"""Pixels never change, whatever is streamed within whatever budget.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py.engine import Step
from support.checkpoints import FAMILIES, write_checkpoint
from support.children import in_child
from support.loopback import Loopback
from support.placed_model import MODULES, Model, assert_empty, place
from support.streaming import (
    DIFFUSION,
    GIB,
    PLENTY,
    PROMPTS,
    budget_bytes,
    draw_on_cpu,
    picture,
    smallest_budget,
    steps,
    stream,
    streams,
)

SOURCE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


TILES = {"enabled": True, "tile_size_x": 8, "tile_size_y": 8, "target_overlap": 0.5}


# Options of the context, of the picture, LoRAs by strength, and what is streamed.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Sequence[float], list[Any]]] = {
    "cfg 1": ({}, steps(2, 1.0), (), DIFFUSION),
    "every module": ({}, steps(2), (), stream()),
    "in turn": ({}, steps(2), (), stream(overlap=False)),
    "batch of 3": ({}, steps(2, batch_count=3), (), DIFFUSION),
    "LoRA merged": ({"lora_apply_mode": "immediately"}, steps(2), (0.8,), stream(["diffusion", "te"], cpu=["vae"])),
    "LoRA at run time": ({"lora_apply_mode": "at_runtime"}, steps(2), (0.8,), stream(["diffusion", "te"], cpu=["vae"])),
    "ControlNet": (
        {"control_net_path": b"control.safetensors"},
        steps(2, control=np.full((64, 64, 3), 200, np.uint8)),
        (),
        stream(["diffusion", "controlnet"], cpu=["te", "vae"]),
    ),
    "ControlNet on the device": (
        {"control_net_path": b"control.safetensors"},
        steps(2, control=np.full((64, 64, 3), 200, np.uint8)),
        (),
        [*DIFFUSION, *place("Loopback0", modules=["controlnet"])],
    ),
    "tiles": ({}, steps(1, width=128, vae_tiling_params=TILES), (), stream(["vae"], cpu=["diffusion", "te"])),
    "picture to picture": (
        {"vae_decode_only": False},
        steps(4, strength=0.7, init_image=SOURCE),
        (),
        stream(["diffusion", "vae"], cpu=["te"]),
    ),
    "pageable": ({}, steps(2), (), stream(["diffusion"], pin=False, cpu=["te", "vae"])),
    "text encoder on the device": (
        {},
        steps(2),
        (),
        [*stream(["diffusion"], cpu=["vae"]), *place("Loopback0", modules=["te"])],
    ),
}


@pytest.mark.parametrize("case", CASES)
@in_child
def test_pixels_never_change(case: str, checkpoint: Path, lora: Path, parts: Path) -> None:
    loopback = Loopback()
    options, given, strengths, wanted = CASES[case]
    if "control_net_path" in options:
        options = {"control_net_path": bytes(parts / "control.safetensors")}
    if "init_image" in given:
        given = {**given, "init_image": picture(SOURCE)}
    draw = functools.partial(Model.draw, **given)
    loras = [(lora, strength) for strength in strengths]
    names = sorted({row["module"] for row in wanted})
    with Model(checkpoint, place("CPU", modules=names), **options) as model:
        expected = draw(model, *loras)
    if case in ("every module", "LoRA merged"):
        with Model(checkpoint, place("Loopback0", modules=names), **options) as model:
            assert draw(model, *loras) == expected
    streamed = [row["module"] for row in wanted if row.get("stream")]
    peaks = {}

    def draw_with(budget: float, pictures: int = 1) -> dict[str, dict[str, Any]]:
        with Model(checkpoint, wanted, max_vram=budget, **options) as model:
            loopback.reset()
            for _ in range(pictures):
                assert draw(model, *loras) == expected
            books = loopback.books()
            peaks[budget] = books["device_bytes_peak"]
            assert books["device_bytes_peak"] <= budget_bytes(budget), (budget, streams(model))
            assert books["violations"] == 0
            rows = streams(model)
            assert {row["module"] for row in rows.values()} == set(streamed)
            for row in rows.values():
                assert row["resident_bytes"] + row["streamed_bytes"] == row["weight_bytes"]
                assert row["peak_bytes"] <= row["budget_bytes"] == budget_bytes(budget)
        assert_empty(loopback)
        return rows

    least = smallest_budget(draw_with)
    assert all(row["mode"] == "resident" for row in draw_with(PLENTY).values())
    rows = draw_with(least + (peaks[PLENTY] / GIB - least) / 3, pictures=2)
    assert any(row["streamed_bytes"] > 0 for row in rows.values())
    modes = {row["mode"] for row in rows.values() if row["streamed_bytes"] > 0}
    assert modes == {"overlapped" if wanted[0]["overlap"] else "in turn"}


def families() -> list[Any]:
    slow = ("sd2", "sd3", "sdxl", "qwen_image")
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in FAMILIES if name != "sd1"]


@pytest.mark.parametrize("family", families())
@in_child
def test_families(family: str, tmp_path: Path) -> None:
    """Every architecture with the smallest budget; after the second step nothing is allocated or freed."""
    loopback = Loopback()
    checkpoint = write_checkpoint(family, tmp_path / "model.safetensors", tiny=True)["model"]
    given = {**steps(4), **PROMPTS}
    expected = draw_on_cpu(checkpoint, **given)

    def draw_with(budget: float) -> None:
        with Model(checkpoint, DIFFUSION, max_vram=budget) as model:
            counts: list[int] = []

            def count(step: Step) -> None:
                books = loopback.books()
                if step.phase == "sampling":
                    counts.append(books["device_allocs"] + books["device_frees"])

            loopback.reset()
            assert model.draw(**given, progress=count) == expected
            books = loopback.books()
            assert books["device_bytes_peak"] <= budget_bytes(budget)
            assert books["violations"] == 0
            assert all(row["streamed_bytes"] > 0 for row in streams(model).values())
            assert len(set(counts[-3:])) == 1, counts

    smallest_budget(draw_with)
    assert_empty(loopback)


@in_child
def test_loras_that_change(checkpoint: Path, lora: Path) -> None:
    """Weights on the device are copied again after others were merged into those in host memory."""
    loopback = Loopback()
    strengths = ((0.8,), (0.8,), (1.5,), (), (0.8,))
    for mode in ("immediately", "at_runtime"):
        pictures = {}
        for name, wanted, budget in (
            ("cpu", place("CPU"), 0.0),
            ("resident", stream(), PLENTY),
            ("streamed", stream(), 0.009),
            ("text encoder only", [*place("CPU", modules=["vae", "diffusion"]), *stream(["te"])], PLENTY),
        ):
            with Model(checkpoint, wanted, max_vram=budget, lora_apply_mode=mode) as model:
                loopback.reset()
                pictures[name] = [model.draw(*((lora, each) for each in one)) for one in strengths]
                if budget:
                    assert loopback.books()["device_bytes_peak"] <= budget_bytes(budget)
            assert_empty(loopback)
        assert len(set(pictures["cpu"])) >= 3
        assert pictures == dict.fromkeys(pictures, pictures["cpu"])


@in_child
def test_sizes_that_change(checkpoint: Path) -> None:
    loopback = Loopback()
    sizes = ((64, 64), (128, 64), (64, 64))

    def draw_all(wanted: list[Any], budget: float) -> list[str]:
        with Model(checkpoint, wanted, max_vram=budget) as model:
            loopback.reset()
            drawn = [model.draw(**steps(1, width=width, height=height)) for width, height in sizes]
            assert not budget or loopback.books()["device_bytes_peak"] <= budget_bytes(budget)
            return drawn

    expected = draw_all(place("CPU"), 0.0)
    for budget in (0.006, PLENTY):
        assert draw_all(DIFFUSION, budget) == expected
    assert_empty(loopback)


@in_child
def test_cancel(checkpoint: Path, parts: Path) -> None:
    loopback = Loopback()
    options = {"control_net_path": bytes(parts / "control.safetensors")}
    given = steps(3, 1.0, control=np.full((64, 64, 3), 200, np.uint8))
    wanted = stream([*MODULES, "controlnet"])

    def stop_at(last: int) -> Callable[..., None]:
        def stop(step: Step) -> None:
            if step.step == last:
                raise InterruptedError

        return stop

    with Model(checkpoint, place("CPU", modules=[*MODULES, "controlnet"]), **options) as model:
        expected = model.draw(**given)
    for budget in (0.008, PLENTY):
        with Model(checkpoint, wanted, max_vram=budget, **options) as model:
            for last in (1, 2):
                loopback.reset()
                with pytest.raises(InterruptedError):
                    model.draw(**given, progress=stop_at(last))
                assert model.draw(**given) == expected
                assert loopback.books()["device_bytes_peak"] <= budget_bytes(budget)
            for delay in (0.01, 0.05):
                timer = threading.Timer(delay, model.context.cancel)
                timer.start()
                with contextlib.suppress(sdcpp_py.SdcppError):
                    model.draw(**given)
                timer.join()
                assert model.draw(**given) == expected
                assert loopback.books()["device_bytes_peak"] <= budget_bytes(budget)
        assert_empty(loopback)


@in_child
def test_cancel_while_a_lora_is_merged(checkpoint: Path, lora: Path) -> None:
    """A LoRA is merged into weights in host memory, wholly or not at all; what streams draws right after a cancel."""
    loopback = Loopback()
    wanted = stream(["diffusion", "te"], cpu=["vae"])
    with Model(checkpoint, place("CPU"), lora_apply_mode="immediately") as model:
        expected = model.draw((lora, 0.8))
    for delay in np.linspace(0.0, 0.08, 9):
        with Model(checkpoint, wanted, max_vram=0.0075, lora_apply_mode="immediately") as model:
            loopback.reset()
            timer = threading.Timer(delay, model.context.cancel)
            timer.start()
            with contextlib.suppress(sdcpp_py.CancelledError):
                assert model.draw((lora, 0.8)) == expected
            timer.join()
            assert model.draw((lora, 0.8)) == expected
            assert loopback.books()["device_bytes_peak"] <= budget_bytes(0.0075)
        assert_empty(loopback)


def cycle(checkpoint: Path, count: int, seed: int) -> None:
    """Draw with random settings, each in a context of its own."""
    loopback = Loopback()
    choose = random.Random(seed)
    given = steps(1)
    expected = draw_on_cpu(checkpoint, **given)
    for _ in range(count):
        options = {
            "async": int(choose.random() > 0.1),
            "events": int(choose.random() > 0.1),
            "host_buffer": int(choose.random() > 0.2),
            "max_buffer_size": choose.choice((0, 0, 3 << 20)),
            "copy_latency": 10 ** choose.uniform(-7, -3),
            "refuse_device_alloc": choose.choice((0, 0, 0, 2, 4)),
        }
        loopback.set(**options)
        budget = choose.uniform(0.0105, 0.03)
        with Model(checkpoint, stream(pin=choose.random() > 0.3), max_vram=budget) as model:
            loopback.reset()
            try:
                assert model.draw(**given) == expected, options
            except sdcpp_py.SdcppError:
                assert options["refuse_device_alloc"] > 0, options
                if model.context.closed:  # an engine check failed
                    continue
            loopback.set(refuse_device_alloc=0)
            assert model.draw(**given) == expected, options
            assert loopback.books()["device_bytes_peak"] <= budget_bytes(budget), options
        assert_empty(loopback)


@in_child
def test_random_settings_draw_the_same(checkpoint: Path) -> None:
    cycle(checkpoint, 6, seed=1)


@pytest.mark.slow
@in_child
def test_many_random_settings_draw_the_same(checkpoint: Path) -> None:
    cycle(checkpoint, 150, seed=2)


@in_child
def test_graphs_in_parts_for_cancelling(checkpoint: Path) -> None:
    """As a device that computes for long is given them."""
    loopback = Loopback()
    given = steps(2)
    expected = draw_on_cpu(checkpoint, **given)
    graphs = []
    for parts in ("1", "4"):
        os.environ["SDCPP_GRAPH_PARTS"] = parts
        for placements, options in ((place("Loopback0"), {}), (DIFFUSION, {"max_vram": 0.012}), (DIFFUSION, {})):
            with Model(checkpoint, placements, **options) as model:
                loopback.reset()
                assert model.draw(**given) == expected
                graphs.append(loopback.books()["graphs"])
    # What is streamed within a small budget is given in more parts than that in any case.
    assert graphs[3] > graphs[0]
    assert graphs[4] == graphs[1]
    assert graphs[5] > graphs[2]
