"""The arena: when it is allocated, where its slots lie, and what happens when the device refuses memory.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py.engine import Step
from support.checkpoints import write_checkpoint
from support.children import in_child
from support.loopback import Loopback
from support.placed_model import Model, assert_empty, place
from support.streaming import DIFFUSION, PLENTY, PROMPTS, budget_bytes, draw_on_cpu, steps, stream, streams


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
            counts: dict[int, list[int]] = {}

            def count(step: Step, counts: dict[int, list[int]] = counts) -> None:
                if step.phase == "sampling" and step.step >= 1:
                    books = loopback.books()
                    counts.setdefault(step.picture, []).append(books["device_allocs"] + books["device_frees"])

            with Model(checkpoint, wanted, max_vram=budget, **options) as model:
                model.draw(**given, progress=count)
                assert any(row["streamed_bytes"] > 0 for row in streams(model).values())
            assert len(counts) == given.get("batch_count", 1)
            for one in counts.values():
                assert len(one) == 5
                assert len(set(one[1:-1])) == 1, counts  # the last step of the first picture frees


@pytest.mark.parametrize("as_planned", [True, False])
@in_child
def test_slots_in_the_compute_buffer(as_planned: bool, checkpoint: Path) -> None:
    """Slots lie where the compute buffer is free, or in memory of their own where it is not used as was planned.

    The engine's kernels need a compute buffer that has room for them.
    """
    if not as_planned:
        os.environ["SDCPP_LEAVE_OUT"] = "layout"
    loopback = Loopback()
    pictures = [steps(2, 1.0), steps(2, 1.0, width=128), steps(2, 1.0)]
    with Model(checkpoint, place("CPU"), kernels="engine") as model:
        expected = [model.draw(**each) for each in pictures]
    for budget in (0.007, 0.01) if as_planned else (0.007,):
        borrowed = []
        with Model(checkpoint, DIFFUSION, max_vram=budget, kernels="engine") as model:
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
    # When some of the residents that were evicted come back and others do not.
    for number in (1, 2, 4, 7):
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
    """One prompt's graph takes more than that of the other one, which is computed first and has a compute buffer."""
    loopback = Loopback()
    checkpoint = write_checkpoint("zimage", tmp_path / "model.safetensors", tiny=True)["model"]
    given = {**steps(2), "prompt": PROMPTS["negative_prompt"], "negative_prompt": PROMPTS["prompt"]}
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
        for number in (1, 2, 20, 40, 60):
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
