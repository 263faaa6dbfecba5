"""The budget of device memory: who of a context holds how much of it, and what happens when it is too small.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import sdcpp_py
from sdcpp_py.engine import Step
from support.children import in_child
from support.loopback import Loopback
from support.placed_model import Model, assert_empty, place, total
from support.streaming import DIFFUSION, GIB, budget_bytes, draw_on_cpu, named_budget, steps, stream, streams


@in_child
def test_a_smaller_picture_gets_the_memory_back(checkpoint: Path) -> None:
    """At the latest in the second one, since a generation may begin with the smallest of its graphs."""
    Loopback()
    with Model(checkpoint, DIFFUSION, max_vram=0.01) as model:
        streamed = []
        for width in (64, 320, 64, 64):
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
            # Residents are evicted in eighths.
            assert kept >= denoiser["resident_bytes"] * 7 // 8 - max(0, needs - free) > 0, (budget, copied)
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
        # For computing, for copying and for the second pass of the resident one's steps, however many contexts.
        assert loopback.books()["streams_live"] == 3
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

    def begin(step: Step) -> None:
        begun.append(step.step)

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


@in_child
def test_a_crowded_device_draws_what_can_be_drawn(checkpoint: Path) -> None:
    """Whatever is free of it: the reserve is given up where the picture needs it, and is whole again afterwards."""
    loopback = Loopback(memory_total=1 << 30)
    given = steps(2)
    expected = draw_on_cpu(checkpoint, **given)

    def draw_with(max_vram: float) -> str | None:
        with Model(checkpoint, DIFFUSION, max_vram=max_vram) as model:
            try:
                return model.draw(**given)
            except sdcpp_py.DeviceMemoryError:
                return None

    drawn = []
    for free in (0.0, 0.003, 0.008, 0.06, 0.0999, 0.1001, 0.106, 0.3):
        loopback.set(memory_reserved=GIB - int(free * GIB))
        loopback.reset()
        found = draw_with(0.0)
        assert found == draw_with(max(free, 1e-5)), "a budget of all that is free"
        assert found in (None, expected)
        assert loopback.books()["device_bytes_peak"] <= free * GIB
        drawn.append(found is not None)
        (gpu,) = (device for device in sdcpp_py.devices() if device.name == "Loopback0")
        assert gpu.memory_reserve < gpu.memory_free or free == 0.0
    assert drawn == sorted(drawn), "more memory never draws less"
    assert not drawn[0]
    assert all(drawn[2:])

    loopback.set(memory_reserved=GIB - int(0.102 * GIB))
    with Model(checkpoint, DIFFUSION, max_vram=0.0) as model:
        budgets = []
        for free in (0.102, 0.3, 0.102, 0.02):
            loopback.set(memory_reserved=GIB - int(free * GIB))
            assert model.draw(**given) == expected
            budgets.append(streams(model)["unet"]["budget_bytes"] / GIB)
    assert budgets[1] == pytest.approx(0.2, rel=1e-3)
    assert budgets[0] == budgets[2]
    assert all(0.001 < budget <= 0.102 for budget in (budgets[0], budgets[3]))
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
