"""Lanes: the passes of a step and the pictures of a batch in one graph, with the pixels that each has by itself.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sdcpp_py
from sdcpp_py.engine import Step
from sdcpp_py.engine.runtime import tap
from support.checkpoints import write_checkpoint
from support.children import in_child
from support.denoiser_probe import MODELS, Probe, header_only, probe_library
from support.loopback import Loopback
from support.placed_model import Model, assert_empty, place
from support.streaming import DIFFUSION, GIB, PLENTY, PROMPTS, budget_bytes, steps, stream, streams


def drawn(
    model: Model, *loras: tuple[Path, float], progress: Any = None, preview: Any = None, **given: Any
) -> list[str]:
    """Return the hash of each picture's pixels."""
    options = {"width": 64, "height": 64, "seed": 1, **PROMPTS, **given}
    options["loras"] = [{"path": bytes(path), "multiplier": multiplier} for path, multiplier in loras]
    pixels, _ = model.context.image_generate(options, progress=progress, preview=preview)
    return [hashlib.sha256(data).hexdigest() for _, _, data in pixels]


def alone(model: Model, count: int, **given: Any) -> list[str]:
    """Return the hashes of pictures that are drawn one by one."""
    return [drawn(model, **{**given, "seed": 1 + index})[0] for index in range(count)]


def only_row(model: Model) -> dict[str, Any]:
    """Return how the denoiser was streamed."""
    (row,) = (row for row in streams(model).values() if row["module"] == "diffusion")
    return row


def noisy(count: int, cfg: float = 7.0, **more: object) -> dict[str, Any]:
    """Return options of a sampler that adds noise of its own in each step."""
    given = steps(count, cfg, **more)
    given["sample_params"] |= {"sample_method": sdcpp_py.engine.library()[1].EULER_A_SAMPLE_METHOD, "eta": 1.0}
    return given


# Options of the context, of the pictures, what is streamed, budgets, and the lanes of four pictures within each. What
# else pictures may have is in test_lanes_combined.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[Any], dict[float, int]]] = {
    "noise of each step": ({}, noisy(2), DIFFUSION, {0.002: 4, 0.004: 8, PLENTY: 1}),
    "without guidance": ({"rng_type": 0, "sampler_rng_type": 2}, noisy(2, 1.0), DIFFUSION, {0.004: 4}),
    "second pass and tiles, in turn": (
        {},
        steps(
            1,
            vae_tiling_params={"enabled": True, "tile_size_x": 8, "tile_size_y": 8, "target_overlap": 0.5},
            hires={"enabled": True, "upscaler": 0, "scale": 2.0, "steps": 1, "denoising_strength": 0.7},
        ),
        stream(["diffusion", "vae"], cpu=["te"], overlap=False),
        {0.008: 8},
    ),
}


@pytest.mark.parametrize("case", CASES)
@in_child
def test_each_picture_is_the_one_drawn_alone(case: str, checkpoint: Path) -> None:
    loopback = Loopback()
    options, given, wanted, budgets = CASES[case]
    names = sorted({row["module"] for row in wanted})
    with Model(checkpoint, place("CPU", modules=names), **options) as model:
        expected = alone(model, 4, **given)
        assert len(set(expected)) == 4
    for budget, lanes in budgets.items():
        with Model(checkpoint, wanted, max_vram=budget, **options) as model:
            loopback.reset()
            assert drawn(model, **given, batch_count=4) == expected
            row = only_row(model)
            books = loopback.books()
            assert books["device_bytes_peak"] <= budget_bytes(budget)
            assert books["violations"] == 0
            assert (row["lanes"], row["mode"] == "resident") == (lanes, lanes == 1)
            assert row["saved_bytes"] == (row["passes"] - row["graphs"]) * row["streamed_bytes"]
            assert bool(row["saved_bytes"]) == (lanes > 1)
            assert drawn(model, **given) == expected[:1]
        assert_empty(loopback)


@in_child
def test_a_transformer_and_what_takes_turns(tmp_path: Path) -> None:
    """Prompts of different lengths are lanes; compared passes are not, and the report says so."""
    loopback = Loopback()
    checkpoint = write_checkpoint("zimage", tmp_path / "model.safetensors", tiny=True)["model"]
    cache = {"mode": sdcpp_py.engine.library()[1].SD_CACHE_EASYCACHE, "reuse_threshold": 0.2, "end_percent": 1.0}
    cases: dict[str, tuple[dict[str, Any], int, str]] = {
        "both prompts": (steps(2, batch_count=2), 4, ""),
        "cache": (steps(3, cache=cache), 1, "cache mode"),
    }
    expected = {}
    with Model(checkpoint, place("CPU")) as model:
        for name, (given, _, _) in cases.items():
            expected[name] = drawn(model, **given)

    with Model(checkpoint, DIFFUSION, max_vram=0.006) as model:
        for name, (given, lanes, reason) in cases.items():
            assert drawn(model, **given) == expected[name], name
            row = only_row(model)
            assert row["streamed_bytes"] > 0
            assert row["lanes"] == lanes, name
            assert reason in row["lanes_reason"], name
    assert_empty(loopback)


@in_child
def test_callbacks_and_cancelling(checkpoint: Path) -> None:
    """They are called on the caller's thread; whatever ends one picture ends all, and the next call draws as ever."""
    loopback = Loopback()
    given = noisy(3, batch_count=4)
    with Model(checkpoint, place("CPU")) as model:
        expected = drawn(model, **given)
    threads = len(os.listdir("/proc/self/task"))
    heard: list[Step] = []

    def hear(step: Step) -> None:
        assert threading.get_ident() == threading.main_thread().ident
        heard.append(step)

    def stop_at(number: int) -> Callable[[Step], None]:
        def stop(step: Step) -> None:
            hear(step)
            if step.phase == "sampling" and len(heard) == number:
                raise InterruptedError

        return stop

    with Model(checkpoint, DIFFUSION, max_vram=0.012) as model:
        outputs: list[tuple[str, tuple[int, ...]]] = []
        with tap(lambda phase, shape, _: outputs.append((phase, shape))):
            assert drawn(model, **given, progress=hear, preview=("proj", 1)) == expected
        assert outputs.count(("sampling", (1, 4, 8, 8))) == 3 * 2 * 4
        assert all(step.frames for step in heard if step.phase == "sampling" and step.step)
        assert only_row(model)["lanes"] == 8
        at = [(step.picture, step.step) for step in heard if step.phase == "sampling" and step.steps]
        assert sorted(at) == [(picture, step) for picture in range(1, 5) for step in range(4)]
        assert at.index((1, 3)) > at.index((4, 2))  # side by side
        for number in (3, 6, 9, 14):
            heard.clear()
            with pytest.raises(InterruptedError):
                drawn(model, **given, progress=stop_at(number))
        for delay in (0.02, 0.1, 0.3):
            timer = threading.Timer(delay, model.context.cancel)
            timer.start()
            with contextlib.suppress(sdcpp_py.CancelledError):
                assert drawn(model, **given) == expected
            timer.join()
        for number in (1, 3, 5):
            loopback.set(refuse_device_alloc=number, refuse_device_alloc_count=-1)
            with contextlib.suppress(sdcpp_py.DeviceMemoryError):
                drawn(model, **given, width=128)
            loopback.set(refuse_device_alloc=0)
        assert drawn(model, **given) == expected
    assert_empty(loopback)
    assert len(os.listdir("/proc/self/task")) == threads


@in_child
def test_lanes_are_planned_as_if_no_other_passes_had_been() -> None:
    """What a picture before left free of a smaller compute buffer does not say how much of a larger one is lent."""
    loopback = Loopback(dry=1, check_uninitialised=0, memory_total=1 << 42)
    ffi, lib = probe_library()

    def planned(path: Path, *pictures: tuple[int, int]) -> dict[str, Any]:
        probe = Probe(loopback, lib, ffi, path, MODELS["SDXL"], "overlapped", True)
        for budget, passes in pictures:
            probe.begin(budget)
            probe.step(1, passes)
        row = probe.stream()
        probe.close()
        return {name: row[name] for name in ("lanes", "slots", "slot_bytes", "streamed_bytes", "compute_bytes")}

    with header_only(MODELS["SDXL"]) as path:
        lanes = (int(4.6 * GIB), 4)
        row = planned(path, lanes)
        assert row["lanes"] == 4
        assert planned(path, (1 << 42, 1), lanes) == row


@in_child
def test_a_guided_step_takes_what_one_pass_does() -> None:
    """On the virtual clock, where copying takes four times as long as computing one pass."""
    loopback = Loopback(dry=1, check_uninitialised=0, memory_total=1 << 42)
    ffi, lib = probe_library()
    now = ffi.callback("double(void)", lambda: loopback.clock()["host_seconds"])
    lib.sdcpp_probe_clock(now)
    with header_only(MODELS["Z-Image"]) as path:
        device = Probe(loopback, lib, ffi, path, MODELS["Z-Image"], "device", True)
        device.begin(1 << 42)
        device.step()
        compute = device.step()
        device.close()
        probe = Probe(loopback, lib, ffi, path, MODELS["Z-Image"], "overlapped", True)
        probe.begin(1 << 42)
        probe.step()
        whole = probe.stream()
        budget = whole["compute_bytes"] + whole["weight_bytes"] // 2
        rate = whole["weight_bytes"] / 2 / (4 * compute)
        loopback.set(pinned_bandwidth=rate)
        seconds, copied = {}, {}
        for passes in (1, 2, 4):
            probe.begin(budget)
            probe.step(2, passes)
            before = loopback.books()["weight_upload_pinned_bytes"]
            seconds[passes] = probe.step(4, passes)
            copied[passes] = (loopback.books()["weight_upload_pinned_bytes"] - before) / 4
            row, books = probe.stream(), loopback.books()
            assert row["lanes"] == passes
            assert books["device_bytes_peak"] <= budget
            assert books["violations"] == 0
            # The bound: what the lanes' compute buffer leaves no room for is copied.
            must = whole["weight_bytes"] + row["compute_bytes"] - budget
            assert seconds[passes] <= 1.05 * max(passes * compute, must / rate)
        assert copied[2] <= 1.10 * copied[1]
        assert seconds[2] <= 1.10 * seconds[1]
        assert seconds[4] <= 1.10 * max(seconds[1], 4 * compute)
        # Two lanes are chosen where they fit: one is where there is hardly room for two.
        for gib in (0.343, 0.345, 0.347):
            probe.begin(int(gib * GIB))
            probe.step(1, 2)
        probe.close()
    lib.sdcpp_probe_clock(ffi.NULL)


@in_child
def test_two_passes_of_a_step_are_computed_at_the_same_time(checkpoint: Path, lora: Path) -> None:
    """Where everything stays on the device, the second on a stream of its own; a device without room takes turns."""
    loopback = Loopback()
    given = noisy(3)
    options = {"lora_apply_mode": "at_runtime"}
    with Model(checkpoint, place("CPU"), **options) as model:
        expected = [drawn(model, (lora, 0.8), **given), drawn(model, **given, batch_count=2)]
    for max_vram, together in ((0.0, True), (0.0001, False)):
        with Model(checkpoint, place("Loopback0"), max_vram=max_vram, **options) as model:
            streams_before = loopback.books()["streams_live"]
            assert [drawn(model, (lora, 0.8), **given), drawn(model, **given, batch_count=2)] == expected
            books = loopback.books()
            assert books["violations"] == 0
            assert (books["streams_live"] > streams_before) == together
            weights = books["device_bytes"]
            with pytest.raises(sdcpp_py.CancelledError):
                drawn(model, **given, progress=lambda step: model.context.cancel() if isinstance(step, Step) else None)
            assert loopback.books()["device_bytes"] == weights  # both compute buffers are gone
            assert drawn(model, **given) == expected[1][:1]
        assert_empty(loopback)
