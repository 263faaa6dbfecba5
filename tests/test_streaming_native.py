"""Streaming at the border: pixels never change, the budget holds, and copies and computations keep their order.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import engine
from support.checkpoints import FAMILIES, write_checkpoint
from support.children import in_child
from support.denoiser_probe import MODELS, Probe, header_only, probe_library
from support.loopback import Loopback
from test_placement_native import MODULES, Model, assert_empty, place, total

GIB = 1 << 30
PLENTY = 1.0  # GiB, more than any tiny model takes


def stream(
    modules: Sequence[str] = MODULES, pin: bool = True, cpu: Sequence[str] = (), overlap: bool = True
) -> list[Any]:
    """Return placements that stream some modules and leave others on the CPU."""
    streamed = {"stream": True, "overlap": overlap}
    return [*({**row, **streamed} for row in place("Loopback0", "CPU", pin, modules)), *place("CPU", modules=cpu)]


# The autoencoder's compute buffer is larger than everything else at this size.
DIFFUSION = stream(["diffusion"], cpu=["te", "vae"])


def steps(count: int, cfg: float = 7.0, **more: object) -> dict[str, Any]:
    """Return options of a picture in so many steps."""
    return {"sample_params": {"sample_steps": count, "guidance": {"txt_cfg": cfg}}, **more}


def draw_on_cpu(checkpoint: Path, **given: Any) -> str:
    """Return the picture that every placement has to draw."""
    with Model(checkpoint, place("CPU")) as model:
        return model.draw(**given)


def budget_bytes(max_vram: float) -> int:
    return int(float(np.float32(max_vram)) * GIB)


def streams(model: Model) -> dict[str, dict[str, Any]]:
    return {row["runner"]: row for row in engine.context_streams(model.context)}


def named_budget(error: sdcpp_py.DeviceMemoryError) -> float:
    """Return the budget that an error names as the smallest one that works."""
    found = re.findall(r"set max_vram to (\d+\.\d+) or", str(error))
    assert len(found) == 1, error
    return float(found[0])


def smallest_budget(draw: Callable[[float], object]) -> float:
    """Return the smallest budget that a picture can be drawn with.

    Each network can only name what it needs itself; with that, this network is never the one that fails again.
    """
    budget = 1e-5
    while True:
        try:
            draw(budget)
            return budget
        except sdcpp_py.DeviceMemoryError as error:
            assert named_budget(error) > budget
            budget = named_budget(error)


def picture(array: np.ndarray) -> dict[str, Any]:
    """Return the fields of an sd_image_t; the array must outlive it."""
    ffi = engine._engine()[0]
    height, width, channels = array.shape
    return {"width": width, "height": height, "channel": channels, "data": ffi.from_buffer("uint8_t[]", array)}


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


PROMPTS = {"prompt": "a cat", "negative_prompt": "a very long list of what shall by no means be in the picture: dogs"}


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

            def count(step: int, *_: object) -> None:
                books = loopback.books()
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
def test_nothing_is_allocated_between_the_second_step_and_the_last(checkpoint: Path, parts: Path) -> None:
    loopback = Loopback()
    control = {"control_net_path": bytes(parts / "control.safetensors")}
    image = np.full((64, 64, 3), 200, np.uint8)
    for wanted, options, given in (
        (DIFFUSION, {}, steps(5, batch_count=3)),
        (stream(["diffusion", "controlnet"], cpu=["te", "vae"]), control, steps(5, control=image)),
    ):
        for budget in (0.0075, 0.012):
            counts: list[list[int]] = []

            def count(step: int, *_: object, counts: list[list[int]] = counts) -> None:
                books = loopback.books()
                if step == 1:
                    counts.append([])
                if step >= 1:
                    counts[-1].append(books["device_allocs"] + books["device_frees"])

            with Model(checkpoint, wanted, max_vram=budget, **options) as model:
                model.draw(**given, progress=count)
                assert any(row["streamed_bytes"] > 0 for row in streams(model).values())
            assert len(counts) == given.get("batch_count", 1)
            for one in counts:
                assert len(one) == 5
                assert len(set(one[1:])) == 1, counts


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
def test_a_smaller_picture_gets_the_memory_back(checkpoint: Path) -> None:
    """At the latest in the second one, since a generation may begin with the smallest of its graphs."""
    Loopback()
    with Model(checkpoint, DIFFUSION, max_vram=0.01) as model:
        streamed = []
        for width in (64, 192, 64, 64):
            model.draw(**steps(1, width=width))
            streamed.append(streams(model)["unet"]["streamed_bytes"])
    assert streamed[1] > streamed[0]
    assert streamed[3] == streamed[0]


@in_child
def test_a_text_encoder_leaves_the_residents_of_the_denoiser(checkpoint: Path) -> None:
    """It takes no more from them than it needs, and only that is copied again."""
    loopback = Loopback()
    given = steps(2)
    expected = draw_on_cpu(checkpoint, **given)
    for budget in (0.012, 0.016, 0.02):
        with Model(checkpoint, stream(["diffusion", "te"], cpu=["vae"]), max_vram=budget) as model:
            copied = []
            for _ in range(3):
                loopback.reset()
                assert model.draw(**given) == expected
                books = loopback.books()
                assert books["device_bytes_peak"] <= budget_bytes(budget)
                assert books["violations"] == 0
                copied.append(total(model.transfers(), "to_device_bytes_pinned") - sum(copied))
            encoder, denoiser = streams(model)["clip"], streams(model)["unet"]
            needs = sum(encoder[name] for name in ("compute_bytes", "resident_bytes", "slot_bytes"))
            free = budget_bytes(budget) - denoiser["resident_bytes"] - denoiser["slot_bytes"]
            assert copied[1] == copied[2]
            kept = copied[0] - copied[1]
            # Residents are given up in eighths.
            assert kept >= denoiser["resident_bytes"] * 7 // 8 - max(0, needs - free) > 0, (budget, copied)
        assert_empty(loopback)


@pytest.mark.parametrize("as_planned", [True, False])
@in_child
def test_slots_in_the_compute_buffer(as_planned: bool, checkpoint: Path) -> None:
    """Slots lie where the compute buffer is free, or in memory of their own where it is not used as was planned."""
    if not as_planned:
        os.environ["SDCPP_LEAVE_OUT"] = "layout"
    loopback = Loopback()
    pictures = [steps(2), steps(2, width=128), steps(2)]
    with Model(checkpoint, place("CPU")) as model:
        expected = [model.draw(**each) for each in pictures]
    for budget in (0.007, 0.01) if as_planned else (0.007,):
        borrowed = []
        with Model(checkpoint, DIFFUSION, max_vram=budget) as model:
            for given, picture in zip(pictures, expected, strict=True):
                loopback.reset()
                assert model.draw(**given) == picture
                books = loopback.books()
                assert books["device_bytes_peak"] <= budget_bytes(budget)
                assert books["violations"] == 0
                (row,) = streams(model).values()
                assert row["mode"] == "overlapped"
                borrowed.append(row["borrowed_slots"])
        assert all(borrowed) if as_planned else not any(borrowed), borrowed
        assert_empty(loopback)


@in_child
def test_two_contexts_on_one_device(checkpoint: Path) -> None:
    loopback = Loopback()
    given = steps(2)
    expected = draw_on_cpu(checkpoint, **given)
    with (
        Model(checkpoint, DIFFUSION, max_vram=0.008) as first,
        Model(checkpoint, stream(), max_vram=0.01) as second,
        Model(checkpoint, place("Loopback0")) as third,
    ):
        before = loopback.books()["device_bytes"]
        loopback.reset()
        for model in (first, second, first, third, second):
            assert model.draw(**given) == expected
        # The resident context's own compute buffers come and go while the others keep what they have.
        assert loopback.books()["streams_live"] == 2, "one for computing and one for copying, however many contexts"
        loopback.reset()
        for model in (first, second):
            assert model.draw(**given) == expected
        assert loopback.books()["device_bytes_peak"] - before <= budget_bytes(0.008) + budget_bytes(0.01)
    assert_empty(loopback)


@in_child
def test_budget_that_is_too_small(checkpoint: Path) -> None:
    """The error comes before the first step and names a budget that works, and hardly less does not."""
    loopback = Loopback()
    begun: list[int] = []

    def begin(step: int, *_: object) -> None:
        begun.append(step)

    for width in (64, 128):

        def draw_with(budget: float, width: int = width) -> None:
            with Model(checkpoint, DIFFUSION, max_vram=budget) as model:
                begun.clear()
                loopback.reset()
                try:
                    model.draw(**steps(1, width=width), progress=begin)
                except sdcpp_py.SdcppError as error:
                    assert max(begun, default=0) == 0, "before the first step is done"
                    assert "may be used: set max_vram to" in str(error)
                    raise
                assert loopback.books()["device_bytes_peak"] <= budget_bytes(budget)

        with pytest.raises(sdcpp_py.GenerationError) as caught:
            draw_with(0.001)
        least = named_budget(caught.value)
        draw_with(least)
        with pytest.raises(sdcpp_py.GenerationError):
            draw_with(least - 0.0002)
    assert_empty(loopback)


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


@in_child
def test_every_refused_device_allocation(checkpoint: Path) -> None:
    """A refused arena is made smaller; a refused compute buffer is asked for once more, without what others keep."""
    loopback = Loopback()
    given = steps(2)
    expected = draw_on_cpu(checkpoint, **given)
    drawn = refused = 0
    for number, count in itertools.product(range(1, 9), (1, -1)):
        with Model(checkpoint, stream(["diffusion", "te"], cpu=["vae"]), max_vram=0.0125) as model:
            loopback.reset()
            loopback.set(refuse_device_alloc=number, refuse_device_alloc_count=count)
            try:
                assert model.draw(**given) == expected
                drawn += 1
            except sdcpp_py.DeviceMemoryError as error:
                refused += 1
                assert "module " in str(error)
            assert loopback.books()["device_bytes_peak"] <= budget_bytes(0.0125)
            loopback.set(refuse_device_alloc=0)
            assert model.draw(**given) == expected, "the next picture has all it needs"
            assert loopback.books()["device_bytes_peak"] <= budget_bytes(0.0125)
    assert_empty(loopback)
    assert drawn >= 3
    assert refused >= 3
    # When some of the residents that were given up come back and others do not.
    for number in range(1, 9):
        with Model(checkpoint, stream(["diffusion", "te"], cpu=["vae"]), max_vram=0.0125) as model:
            assert model.draw(**given) == expected
            loopback.set(refuse_device_alloc=number, refuse_device_alloc_count=1)
            with contextlib.suppress(sdcpp_py.DeviceMemoryError):
                assert model.draw(**given) == expected, number
            loopback.set(refuse_device_alloc=0)
            assert model.draw(**given) == expected, number
    assert_empty(loopback)
    # The second allocation is the text encoder's weights; the third one asks again, after others gave up theirs.
    loopback.set(refuse_device_alloc=2, refuse_device_alloc_count=2)
    with Model(checkpoint, stream(["te"], cpu=["diffusion", "vae"]), max_vram=PLENTY) as model:
        assert model.draw(**given) == expected
        (row,) = streams(model).values()
        assert "refused" in row["reason"]


@in_child
def test_refusals_between_unequal_graphs(tmp_path: Path) -> None:
    """The second prompt's graph takes more than the first one's, whose compute buffer is there already."""
    loopback = Loopback()
    checkpoint = write_checkpoint("zimage", tmp_path / "model.safetensors", tiny=True)["model"]
    given = {**steps(2), **PROMPTS}
    expected = draw_on_cpu(checkpoint, **given)
    refused = 0
    with Model(checkpoint, DIFFUSION, max_vram=PLENTY) as model:
        assert model.draw(**given) == expected
        for number, count in itertools.product(range(1, 6), (1, -1)):
            loopback.reset()
            loopback.set(refuse_device_alloc=number, refuse_device_alloc_count=count)
            try:
                assert model.draw(**given) == expected
            except sdcpp_py.DeviceMemoryError:
                refused += 1
            loopback.set(refuse_device_alloc=0)
            assert model.draw(**given) == expected, (number, count)
    assert refused >= 2
    assert_empty(loopback)


@in_child
def test_a_backend_that_throws(checkpoint: Path) -> None:
    """What was copied or lent when it threw is not taken for done by the next picture."""
    loopback = Loopback()
    given = steps(2)
    expected = draw_on_cpu(checkpoint, **given)
    with Model(checkpoint, DIFFUSION, max_vram=0.007) as model:
        assert model.draw(**given) == expected
        (row,) = streams(model).values()
        assert row["borrowed_slots"] > 0
        for number in (1, 2, 30, 60, 100):
            loopback.reset()
            loopback.set(throw_at_graph=number)
            with pytest.raises(sdcpp_py.SdcppError, match="told to throw"):
                model.draw(**given)
            loopback.set(throw_at_graph=0)
            assert model.draw(**given) == expected, number
            books = loopback.books()
            assert books["violations"] == 0
            assert books["device_bytes_peak"] <= budget_bytes(0.007)
    assert_empty(loopback)


@in_child
def test_a_refused_picture_leaves_nothing_of_its_control_image(checkpoint: Path, parts: Path) -> None:
    loopback = Loopback()
    options = {"control_net_path": bytes(parts / "control.safetensors")}
    images = [np.full((64, 64, 3), value, np.uint8) for value in (200, 20)]
    modules = ["diffusion", "controlnet"]
    with Model(checkpoint, place("CPU", modules=[*modules, "te", "vae"]), **options) as model:
        expected = [model.draw(**steps(2, control=image)) for image in images]
    assert len(set(expected)) == 2
    refused = 0
    for number in range(1, 8):
        with Model(checkpoint, stream(modules, cpu=["te", "vae"]), max_vram=PLENTY, **options) as model:
            loopback.reset()
            loopback.set(refuse_device_alloc=number, refuse_device_alloc_count=-1)
            try:
                assert model.draw(**steps(2, control=images[0])) == expected[0]
            except sdcpp_py.DeviceMemoryError:
                refused += 1
            loopback.set(refuse_device_alloc=0)
            assert model.draw(**steps(2, control=images[1])) == expected[1], number
            assert model.draw(**steps(2, control=images[0])) == expected[0], number
        assert_empty(loopback)
    assert refused >= 4


@in_child
def test_padded_rows(tmp_path: Path) -> None:
    """Some devices want zeros behind a quantised weight: slots hold what other weights left there."""
    loopback = Loopback()
    checkpoint = write_checkpoint("sd1", tmp_path / "model.safetensors", tiny=True)["model"]
    given = steps(2)
    with Model(checkpoint, place("CPU"), wtype="q8_0") as model:
        expected = model.draw(**given)
    loopback.set(quantized_row_padding=512)
    for budget in (0.006, PLENTY):
        with Model(checkpoint, DIFFUSION, max_vram=budget, wtype="q8_0") as model:
            loopback.reset()
            assert model.draw(**given) == expected
            assert loopback.books()["device_bytes_peak"] <= budget_bytes(budget)
    assert_empty(loopback)


@in_child
def test_budget_is_what_is_free(checkpoint: Path) -> None:
    """A negative budget leaves that much free; one above the free memory is cut to it."""
    loopback = Loopback(memory_total=1 << 30)
    given = steps(2)
    expected = draw_on_cpu(checkpoint, **given)
    for max_vram, free, mode in (
        (-0.5, 0.51, "overlapped"),
        (0.9, 0.01, "overlapped"),
        (0.0, 0.11, "overlapped"),
        (0.0, 0.2, "resident"),
    ):
        loopback.set(memory_reserved=int((1 - free) * GIB))
        budget = min(free, max_vram) if max_vram > 0 else free + (max_vram or -0.1)
        with Model(checkpoint, DIFFUSION, max_vram=max_vram) as model:
            loopback.reset()
            assert model.draw(**given) == expected
            (row,) = streams(model).values()
            assert row["mode"] == mode, (max_vram, free, row)
            assert row["budget_bytes"] == pytest.approx(budget * GIB, rel=1e-3)
            assert loopback.books()["device_bytes_peak"] <= row["budget_bytes"]
            # Another process gives memory back between two pictures, or takes it.
            for reserved in (1 - free - 0.1, 1 - free, 0):
                loopback.set(memory_reserved=int(reserved * GIB))
                assert model.draw(**given) == expected
        assert_empty(loopback)
    loopback.set(memory_reserved=int(0.999 * GIB))
    with Model(checkpoint, DIFFUSION, max_vram=0.5) as model, pytest.raises(sdcpp_py.GenerationError) as caught:
        model.draw(**given)
    assert "free memory of the device" in str(caught.value)


@in_child
def test_cancel(checkpoint: Path, parts: Path) -> None:
    loopback = Loopback()
    options = {"control_net_path": bytes(parts / "control.safetensors")}
    given = steps(3, 1.0, control=np.full((64, 64, 3), 200, np.uint8))
    wanted = stream([*MODULES, "controlnet"])

    def stop_at(last: int) -> Callable[..., None]:
        def stop(step: int, *_: object) -> None:
            if step == last:
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
                timer = threading.Timer(delay, engine.cancel)
                timer.start()
                with contextlib.suppress(sdcpp_py.SdcppError, engine.BrokenContextError):
                    model.draw(**given)
                timer.join()
                assert model.draw(**given) == expected
                assert loopback.books()["device_bytes_peak"] <= budget_bytes(budget)
        assert_empty(loopback)


@in_child
def test_cancel_while_a_lora_is_merged(checkpoint: Path, lora: Path) -> None:
    """A LoRA is merged in parts when the budget is small, but wholly or not at all."""
    loopback = Loopback()
    wanted = stream(["diffusion", "te"], cpu=["vae"])
    with Model(checkpoint, place("CPU"), lora_apply_mode="immediately") as model:
        expected = model.draw((lora, 0.8))
    merged = 0
    for delay in np.linspace(0.005, 0.08, 6):
        with Model(checkpoint, wanted, max_vram=0.0075, lora_apply_mode="immediately") as model:
            timer = threading.Timer(delay, engine.cancel)
            timer.start()
            try:
                assert model.draw((lora, 0.8)) == expected
            except sdcpp_py.SdcppError:
                merged += model.transfers()["diffusion"]["from_device_bytes"] > 0
            timer.join()
            assert model.draw((lora, 0.8)) == expected
            assert loopback.books()["device_bytes_peak"] <= budget_bytes(0.0075)
        assert_empty(loopback)
    print(f"{merged} of the cancels came after merging")


# What is left out: a wait, or that values in the compute buffer are in the way of slots
# -> LOOPBACK_READ_BEFORE_ARRIVAL, ...
LEFT_OUT = {"arrival": 1, "reader": 2, "load": 1, "height": 2}


@pytest.mark.parametrize("precaution", LEFT_OUT)
@in_child
def test_broken_order_is_found(precaution: str, checkpoint: Path) -> None:
    """A build for tests can leave out a precaution: the accelerator sees it, whatever the pixels say."""
    os.environ["SDCPP_LEAVE_OUT"] = precaution
    loopback = Loopback(dry=1)  # what it would compute could be no number, at which a debug build of ggml stops
    with Model(checkpoint, DIFFUSION, max_vram=0.008) as model:
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
                sizes = [(64 * choose.randint(1, 6), 64 * choose.randint(1, 6)) for _ in range(choose.randint(1, 2))]
                for width, height in [choose.choice(sizes) for _ in range(choose.randint(1, 4))]:
                    assert lib.sdcpp_probe_step(probe.handle, width, height, 77), (number, budget)
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
            except (sdcpp_py.SdcppError, engine.BrokenContextError) as error:
                assert options["refuse_device_alloc"] > 0, options
                if isinstance(error, engine.BrokenContextError):
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
