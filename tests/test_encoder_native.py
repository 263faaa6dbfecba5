"""The VAE's encoder, loaded into a model that draws already: placed as the VAE is, or not at all.

Every test of a device runs in a process of its own with the loopback accelerator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import engine
from support.children import in_child
from support.loopback import Loopback
from support.placed_model import ON_CPU, ON_DEVICE, PINNED, Model, assert_empty, draw

PICTURE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
IMG2IMG: dict[str, Any] = {"init_image": PICTURE, "strength": 1.0}


def options(checkpoint: Path) -> dict[str, Any]:
    return {"model_path": bytes(checkpoint), "n_threads": 1, "free_params_immediately": False}


@in_child
def test_the_encoder_is_placed_as_the_vae_is(checkpoint: Path) -> None:
    loopback = Loopback()
    expected = draw(checkpoint, ON_CPU)
    with Model(checkpoint, ON_CPU, vae_decode_only=False) as whole:
        wanted = whole.draw(**IMG2IMG)
    bytes_more = engine.encoder_bytes(options(checkpoint))
    assert bytes_more > 0
    assert engine.encoder_bytes({**options(checkpoint), "vae_decode_only": False}) == 0
    for places in (PINNED, ON_DEVICE):
        with Model(checkpoint, places) as model:
            assert model.draw() == expected
            before = model.memory()["vae"]
            for _ in range(2):
                model.context.load_encoder(options(checkpoint))
                after = model.memory()["vae"]
                assert (after["buffer_type"], after["pinned"]) == (before["buffer_type"], before["pinned"])
                assert 0 <= after["bytes"] - before["bytes"] - bytes_more < 128 * after["tensors"]
            assert model.draw(**IMG2IMG) == wanted
            assert model.draw() == expected
        assert_empty(loopback)


@in_child
def test_a_refused_encoder_leaves_the_model_as_it_was(checkpoint: Path) -> None:
    loopback = Loopback()
    expected = draw(checkpoint, ON_CPU)
    with Model(checkpoint, ON_DEVICE) as model:
        before = model.memory()["vae"]
        loopback.set(refuse_device_alloc=1, refuse_device_alloc_count=1)
        with pytest.raises(sdcpp_py.DeviceMemoryError, match="^the weights of module vae"):
            model.context.load_encoder(options(checkpoint))
        loopback.set(refuse_device_alloc=0)
        assert model.memory()["vae"] == before
        assert model.draw() == expected
        model.context.load_encoder(options(checkpoint))
        assert model.memory()["vae"]["bytes"] > before["bytes"]
        assert model.draw() == expected
    assert_empty(loopback)


def test_a_callback_that_raises_while_it_loads(checkpoint: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyError("enough")

    with Model(checkpoint) as model:
        expected = model.draw()
        with pytest.raises(KeyError, match="enough"):
            model.context.load_encoder(options(checkpoint), stop)
        assert model.draw() == expected
        model.context.load_encoder(options(checkpoint))
        assert model.draw(**IMG2IMG) != expected
        assert model.draw() == expected


def test_files_that_are_gone(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    with Model(copy) as model:
        expected = model.draw()
        copy.unlink()
        with pytest.raises(sdcpp_py.ModelError, match=r"copy\.safetensors cannot be read"):
            model.context.load_encoder(options(copy))
        assert model.draw() == expected


def test_loras_are_applied_to_the_new_autoencoder_as_to_the_old_one(checkpoint: Path, lora: Path) -> None:
    with Model(checkpoint) as model:
        plain, changed = model.draw(), model.draw((lora, 1.0))
        model.context.load_encoder(options(checkpoint))
        assert model.draw((lora, 1.0)) == changed
        assert model.draw() == plain
