"""LoRAs are placed with the modules that they change, and draw the same wherever these are.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import sdcpp_py
from support.checkpoints import write_checkpoint, write_safetensors
from support.children import in_child
from support.loopback import Loopback
from support.placed_model import ON_CPU, ON_DEVICE, PAGEABLE, PINNED, Model, assert_empty, draw, place, total
from support.streaming import DIFFUSION, steps
from test_lanes_combined import write_any_lora


@in_child
def test_loras_draw_the_same_everywhere(checkpoint: Path, lora: Path) -> None:
    loopback = Loopback(devices=2)
    places = {
        "cpu": ON_CPU,
        "pinned": PINNED,
        "pageable": PAGEABLE,
        "on the device": ON_DEVICE,
        "text encoder elsewhere": [
            *place("Loopback1", modules=["te"]),
            *place("Loopback0", "CPU", True, ["diffusion", "vae"]),
        ],
        "weights on a device the CPU computes for": [
            *place("Loopback0", modules=["te"]),
            *place("CPU", modules=["diffusion"]),
        ],
    }
    for mode in ("immediately", "at_runtime"):
        pictures = {}
        for name, wanted in places.items():
            with Model(checkpoint, wanted, lora_apply_mode=mode) as model:
                pictures[name] = [model.draw((lora, multiplier)) for multiplier in (0.0, 0.8, 1.5)]
                rows = model.memory()
                assert ("diffusion.lora" in rows) == (mode == "at_runtime")
                if mode == "at_runtime":
                    assert rows["diffusion.lora"]["params_device"] == rows["diffusion"]["runtime_device"]
                    assert rows["te.lora"]["runtime_device"] == rows["te"]["runtime_device"]
                if name == "pinned" and mode == "immediately":
                    # Merged where they lie, so that they are the same whatever the device.
                    assert total(model.transfers(), "from_device_bytes") == 0
                    assert total(model.transfers(), "to_device_bytes_pageable") == 0
        assert len(set(pictures["cpu"])) == 3
        assert pictures == dict.fromkeys(pictures, pictures["cpu"])
        assert pictures["cpu"][0] == draw(checkpoint, ON_CPU)
    assert_empty(loopback)


@in_child
def test_weights_change_while_nothing_copies_them(tmp_path: Path) -> None:
    """Copies for the pass that did not come any more end before the next picture's LoRA is merged."""
    loopback = Loopback()
    checkpoint = write_checkpoint("zimage", tmp_path / "model.safetensors", tiny=True)["model"]
    lora = write_any_lora(tmp_path / "lora.safetensors", "zimage")
    with Model(checkpoint, DIFFUSION, max_vram=0.006, lora_apply_mode="immediately") as model:
        drawn = [model.draw((lora, multiplier), **steps(3, 1.0)) for multiplier in (0.3, 0.8)]
    with Model(checkpoint, ON_CPU, lora_apply_mode="immediately") as model:
        assert drawn == [model.draw((lora, multiplier), **steps(3, 1.0)) for multiplier in (0.3, 0.8)]
    assert loopback.books()["violations"] == 0


@in_child
def test_lora_is_applied_after_a_cancel(checkpoint: Path, lora: Path) -> None:
    Loopback()

    def stop(*_: object) -> None:
        raise InterruptedError

    for wanted in (ON_CPU, PINNED, ON_DEVICE):
        expected = draw(checkpoint, wanted, (lora, 0.8), lora_apply_mode="immediately")
        with Model(checkpoint, wanted, lora_apply_mode="immediately") as model:
            plain = model.draw()
            with pytest.raises(InterruptedError):
                model.draw((lora, 0.8), progress=stop)  # while the LoRA's file is read
            assert model.draw((lora, 0.8)) == expected != plain


@in_child
def test_lora_that_stays_is_not_merged_again(checkpoint: Path, lora: Path) -> None:
    Loopback()
    # Weights that live on the device are read from it to be merged.
    with Model(checkpoint, ON_DEVICE, lora_apply_mode="immediately") as model:
        first = model.draw((lora, 0.8))
        before = model.transfers()
        assert model.draw((lora, 0.8)) == first
        assert model.transfers() == before
        assert before["diffusion"]["from_device_bytes"] > 0


@in_child
def test_lora_that_fits_nothing_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    Loopback()
    path = tmp_path / "other.safetensors"
    shapes = {"lora_unet_no_such_layer.lora_down.weight": (4, 8), "lora_unet_no_such_layer.lora_up.weight": (8, 4)}
    write_safetensors(path, shapes, dtype="f16", seed=0, metadata={"format": "pt"})
    for mode in ("immediately", "at_runtime"):
        with Model(checkpoint, PINNED, lora_apply_mode=mode) as model:
            with pytest.raises(sdcpp_py.ModelError, match="nothing of .*other.safetensors fits this model"):
                model.draw((path, 1.0))
            assert model.draw() == draw(checkpoint, ON_CPU)
