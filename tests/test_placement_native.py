"""Placement at the border: where weights are allocated, what is copied, and that pixels never change.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import engine
from support.children import in_child
from support.loopback import Loopback
from support.memory import resident_bytes
from support.placed_model import MODULES, ON_CPU, ON_DEVICE, PAGEABLE, PINNED, Model, assert_empty, draw, place, total


@in_child
def test_weights_are_pinned_and_copies_are_counted(checkpoint: Path) -> None:
    loopback = Loopback()
    with Model(checkpoint, PINNED) as model:
        memory = model.memory()
        assert set(memory) == set(MODULES)
        for row in memory.values():
            assert (row["runtime_device"], row["params_device"]) == ("Loopback0", "CPU")
            assert row["wanted_buffer_type"] == row["buffer_type"] == "Loopback_Host"
            assert row["pinned"] is True
            assert row["bytes"] == row["pinned_bytes"] > 0
            assert row["tensors"] > 0
            assert row["reason"] == ""
        assert loopback.books()["host_bytes"] == total(memory, "bytes")
        assert loopback.books()["device_bytes"] == 0
        loopback.reset()
        model.draw()
        books, transfers = loopback.books(), model.transfers()
        assert books["weight_upload_pageable_bytes"] == 0
        assert books["weight_upload_pinned_bytes"] == total(transfers, "to_device_bytes_pinned") > 0
        assert books["weight_upload_pinned_copies"] == total(transfers, "copies")
        assert total(transfers, "to_device_bytes_pageable") == total(transfers, "from_device_bytes") == 0
        for row in transfers.values():
            assert row["to_device_bytes_pinned"] > 0
            assert 0 < row["seconds"] < 60
    assert_empty(loopback)


@in_child
def test_pixels_never_change(checkpoint: Path) -> None:
    loopback = Loopback(devices=2)
    mixed = [*place("CPU", modules=["te", "vae"]), *place("Loopback0", "CPU", pin=True, modules=["diffusion"])]
    spread = [
        *place("Loopback1", modules=["te"]),
        *place("Loopback0", "CPU", pin=True, modules=["diffusion"]),
        *place("Loopback1", "CPU", pin=True, modules=["vae"]),
    ]
    expected = draw(checkpoint, ON_CPU)
    assert loopback.books()["streams_created"] == 0, "a device that no module uses is not opened"
    found = {
        "pinned": draw(checkpoint, PINNED),
        "pageable": draw(checkpoint, PAGEABLE),
        "on the device": draw(checkpoint, ON_DEVICE),
        "mixed": draw(checkpoint, mixed),
        "spread": draw(checkpoint, spread),
        "weights on another device": draw(checkpoint, place("Loopback0", "Loopback1")),
        "segments, pinned": draw(checkpoint, PINNED, max_vram=0.01),
        "segments, pageable": draw(checkpoint, PAGEABLE, max_vram=0.01),
        "default": draw(checkpoint),
        "offload flag": draw(checkpoint, offload_params_to_cpu=True),
    }
    assert found == dict.fromkeys(found, expected)
    assert_empty(loopback)


@in_child
def test_pinning_saves_what_the_bandwidths_predict(checkpoint: Path) -> None:
    loopback = Loopback()
    seconds, moved = {}, 0
    for name, wanted in (("pinned", PINNED), ("pageable", PAGEABLE)):
        with Model(checkpoint, wanted) as model:
            loopback.reset()
            model.draw()
            seconds[name] = loopback.clock()["host_seconds"]
            moved = total(model.transfers(), f"to_device_bytes_{name}")
    predicted = moved / loopback.get("pageable_bandwidth") - moved / loopback.get("pinned_bandwidth")
    saved = seconds["pageable"] - seconds["pinned"]
    print(f"predicted {predicted * 1e3:.3f} ms, simulated {saved * 1e3:.3f} ms of {seconds['pageable'] * 1e3:.3f} ms")
    assert saved == pytest.approx(predicted, rel=0.01)


@in_child
def test_mixed_placement_is_reported(checkpoint: Path) -> None:
    loopback = Loopback()
    wanted = [*place("CPU", modules=["te", "vae"]), *place("loopback0", "cpu", pin=True, modules=["diffusion"])]
    with Model(checkpoint, wanted) as model:
        memory = model.memory()
        for name in ("te", "vae"):
            row = memory[name]
            assert (row["runtime_device"], row["params_device"], row["buffer_type"]) == ("CPU", "CPU", "CPU")
            assert (row["pinned"], row["reason"]) == (False, "")
        assert memory["diffusion"]["pinned"]
        assert loopback.books()["host_bytes"] == memory["diffusion"]["bytes"]
        model.draw()
        transfers = model.transfers()
        assert transfers["te"]["copies"] == transfers["vae"]["copies"] == 0
        assert transfers["diffusion"]["to_device_bytes_pinned"] > 0
    assert_empty(loopback)


@in_child
def test_weights_that_live_on_the_device_are_not_pinned(checkpoint: Path) -> None:
    loopback = Loopback()
    with Model(checkpoint, place("Loopback0", "Loopback0", pin=True)) as model:
        memory, books = model.memory(), loopback.books()
        assert (books["host_allocs"], books["host_refusals"]) == (0, 0)
        assert books["device_bytes"] == total(memory, "bytes")
        for row in memory.values():
            assert (row["params_device"], row["buffer_type"], row["pinned"]) == ("Loopback0", "Loopback0", False)
            assert "nothing to pin" in row["reason"]
        loaded = total(model.transfers(), "to_device_bytes_pageable")
        assert loaded == books["weight_upload_pageable_bytes"] > 0, "read from the file by way of plain memory"
        before = loopback.books()["device_bytes"]
        model.draw()
        assert total(model.transfers(), "to_device_bytes_pageable") == loaded, "no second copy"
        assert loopback.books()["device_bytes"] == before
    assert_empty(loopback)


@in_child
def test_memory_does_not_grow_without_placement(checkpoint: Path) -> None:
    """Weights on the device take what they took; pinned ones free the device between uses."""
    loopback = Loopback()
    peaks = {}
    for name, wanted in {"device": ON_DEVICE, "default": (), "pinned": PINNED, "pageable": PAGEABLE}.items():
        loopback.reset()
        draw(checkpoint, wanted)
        peaks[name] = loopback.books()["device_bytes_peak"]
    assert peaks["device"] == peaks["default"]
    assert peaks["pinned"] == peaks["pageable"] < peaks["device"]


@in_child
def test_weights_in_several_buffers_are_counted(checkpoint: Path) -> None:
    loopback = Loopback(max_buffer_size=8e6)
    with Model(checkpoint, ON_DEVICE) as model:
        books = loopback.books()
        assert books["device_allocs"] > 3
        assert books["device_bytes"] == total(model.memory(), "bytes")
        assert books["weight_upload_pageable_bytes"] == total(model.transfers(), "to_device_bytes_pageable")
        assert model.draw() == draw(checkpoint, ON_CPU)
    assert_empty(loopback)


@in_child
def test_flags_are_shorthand(checkpoint: Path) -> None:
    loopback = Loopback()
    cases: list[tuple[dict[str, bool], dict[str, tuple[str, str]]]] = [
        ({}, dict.fromkeys(MODULES, ("Loopback0", "Loopback0"))),
        ({"offload_params_to_cpu": True}, dict.fromkeys(MODULES, ("Loopback0", "CPU"))),
        ({"keep_clip_on_cpu": True}, {**dict.fromkeys(MODULES, ("Loopback0", "Loopback0")), "te": ("CPU", "CPU")}),
        (
            {"keep_vae_on_cpu": True, "offload_params_to_cpu": True},
            {**dict.fromkeys(MODULES, ("Loopback0", "CPU")), "vae": ("CPU", "CPU")},
        ),
    ]
    for flags, expected in cases:
        with Model(checkpoint, **flags) as model:
            memory = model.memory()
            assert {name: (row["runtime_device"], row["params_device"]) for name, row in memory.items()} == expected
            assert not any(row["pinned"] or row["reason"] for row in memory.values())
        assert loopback.books()["host_allocs"] == 0, "as the engine does, the flags do not pin"
    # A placement replaces what the flags say of its module.
    with Model(checkpoint, place("CPU", modules=["te"]), offload_params_to_cpu=True) as model:
        assert model.memory()["te"]["runtime_device"] == "CPU"
        assert model.memory()["vae"]["params_device"] == "CPU"
        assert model.memory()["vae"]["runtime_device"] == "Loopback0"
    assert_empty(loopback)


@in_child
def test_survey_says_what_loading_takes(checkpoint: Path) -> None:
    loopback = Loopback()
    options = {"model_path": bytes(checkpoint), "n_threads": 1}
    surveyed = engine.weights_survey(options)
    assert set(surveyed) == set(MODULES)
    books = loopback.books()
    assert (books["device_allocs"], books["host_allocs"], books["streams_created"]) == (0, 0, 0)
    with Model(checkpoint, ON_CPU) as model:
        memory = model.memory()
        for name, bytes_wanted in surveyed.items():
            assert memory[name]["bytes"] == bytes_wanted
    with Model(checkpoint, PINNED) as model:
        for name, row in model.memory().items():
            assert 0 <= row["bytes"] - surveyed[name] < 128 * row["tensors"], "only the alignment is more"
    with_encoder = engine.weights_survey({**options, "vae_decode_only": False})
    without = engine.weights_survey({**options, "vae_decode_only": True})
    assert with_encoder["vae"] > without["vae"]
    smaller = engine.weights_survey({**options, "wtype": "q8_0"})
    assert smaller["diffusion"] < surveyed["diffusion"]
    with pytest.raises(sdcpp_py.ModelError):
        engine.weights_survey({"model_path": b"/nonexistent.safetensors"})


@in_child
def test_every_part_is_placed(checkpoint: Path, parts: Path) -> None:
    loopback = Loopback(devices=2)
    names = ("diffusion", "te", "vae", "controlnet", "upscaler")
    options = {"control_net_path": bytes(parts / "control.safetensors"), "vae_decode_only": False}
    picture: dict[str, Any] = {
        "control": np.full((64, 64, 3), 200, np.uint8),
        "hires": {
            "enabled": True,
            "upscaler": "Model",
            "model_path": bytes(parts / "upscaler.safetensors"),
            "scale": 2.0,
            "steps": 1,
            "denoising_strength": 1.0,
        },
    }
    surveyed = engine.weights_survey({"model_path": bytes(checkpoint), **options})
    assert set(surveyed) == {"diffusion", "te", "vae", "controlnet"}
    expected = None
    for wanted in (
        place("CPU", modules=names),
        place("Loopback0", "CPU", True, names),
        place("Loopback0", "CPU", False, names),
        place("Loopback0", modules=names),
        [*place("Loopback0", "CPU", True, names[:3]), *place("Loopback1", "CPU", True, names[3:])],
    ):
        loopback.reset()
        with Model(checkpoint, wanted, **options) as model:
            found = model.draw(**picture)
            expected = expected or found
            assert found == expected
            memory, transfers = model.memory(), model.transfers()
            assert set(memory) == set(names)
            for place_wanted in wanted:
                row, moved = memory[place_wanted["module"]], transfers[place_wanted["module"]]
                assert row["runtime_device"] == place_wanted["runtime_device"]
                assert row["params_device"] == (place_wanted["params_device"] or place_wanted["runtime_device"])
                if place_wanted["pin"]:
                    assert row["module"] == "upscaler" or row["pinned"], "the upscaler is gone by now"
                    assert moved["to_device_bytes_pinned"] > moved["to_device_bytes_pageable"] == 0
            if wanted[0]["pin"]:
                assert loopback.books()["weight_upload_pageable_bytes"] == 0
        assert_empty(loopback)


@in_child
def test_tae_is_placed_with_the_vae(checkpoint: Path, parts: Path) -> None:
    loopback = Loopback()
    for preview in (False, True):
        options = {"taesd_path": bytes(parts / "tae.safetensors"), "tae_preview_only": preview}
        expected = draw(checkpoint, ON_CPU, **options)
        with Model(checkpoint, PINNED, **options) as model:
            memory = model.memory()
            assert set(memory) == set(MODULES)
            assert memory["vae"]["pinned"]
            surveyed = engine.weights_survey({"model_path": bytes(checkpoint), **options})
            assert 0 <= memory["vae"]["bytes"] - surveyed["vae"] < 128 * memory["vae"]["tensors"]
            assert loopback.books()["host_bytes"] == total(memory, "bytes")
            assert model.draw() == expected
    assert_empty(loopback)


def cycle(checkpoint: Path, count: int) -> None:
    loopback = Loopback(devices=2)
    places = [PINNED, ON_DEVICE, PAGEABLE, [*place("Loopback1", modules=["te"]), *PINNED[::2]]]
    expected = draw(checkpoint, ON_CPU)
    before = 0
    for number, wanted in zip(range(count), itertools.cycle(places), strict=False):
        if number == count // 4:
            before = resident_bytes()
        assert draw(checkpoint, wanted) == expected
        assert_empty(loopback)
    grown = resident_bytes() - before
    print(f"{count} cycles: {grown / 2**20:+.1f} MiB after the first quarter")
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # which keeps freed memory back
        assert grown < 8 << 20


@in_child
def test_cycles_leave_nothing(checkpoint: Path) -> None:
    cycle(checkpoint, 20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@in_child
def test_many_cycles_leave_nothing(checkpoint: Path) -> None:
    cycle(checkpoint, 200)
