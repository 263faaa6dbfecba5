from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

import sdcpp_py
from sdcpp_py import ArgumentError, CancelledError, ClosedError, ModelError, Upscaler
from support import esrgan
from support.children import in_child
from support.loopback import Loopback


def noise(width: int, height: int, channels: int = 3) -> Any:
    """Return a picture with detail of several sizes."""
    random = np.random.default_rng(1)
    coarse = random.random((-(-height // 4), -(-width // 4), channels)).repeat(4, 0).repeat(4, 1)[:height, :width]
    return (coarse * 200 + random.random((height, width, channels)) * 55).astype(np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "twice.safetensors"
    save_file(esrgan.random_weights(2), path)
    return path


@pytest.fixture(scope="module")
def upscaler(model: Path) -> Iterator[Upscaler]:
    with Upscaler(model) as loaded:
        yield loaded


NAMES: dict[str, Callable[[esrgan.Weights], esrgan.Weights]] = {
    "BasicSR": dict,
    "first": esrgan.first_names,
    "trunk": esrgan.trunk_names,
}


@pytest.mark.parametrize(
    ("scale", "folds", "names"),
    [(4, 1, "BasicSR"), (4, 1, "first"), (2, 1, "trunk"), (1, 1, "first"), (4, 2, "BasicSR"), (4, 4, "BasicSR")],
)
def test_it_is_the_published_network(scale: int, folds: int, names: str, tmp_path: Path) -> None:
    weights = esrgan.random_weights(scale, folds=folds, blocks=2)
    save_file(NAMES[names](weights), tmp_path / "m.safetensors")
    picture = noise(36, 20)
    with Upscaler(tmp_path / "m.safetensors") as upscaler:
        assert upscaler.scale == scale // folds
        larger = upscaler.upscale(picture)
        assert larger.size == (36 * upscaler.scale, 20 * upscaler.scale)
        assert esrgan.psnr(larger, esrgan.upscale(weights, picture, folds=folds)) >= 50
        odd = upscaler.upscale(picture[:19, :33])
        assert odd.size == (33 * upscaler.scale, 19 * upscaler.scale)


def test_tiles_leave_no_seams(model: Path, upscaler: Upscaler) -> None:
    picture = noise(150, 70)
    whole = upscaler.upscale(picture, tile_size=0)
    calls: list[tuple[int, int]] = []
    tiled = upscaler.upscale(picture, tile_size=64, progress=lambda event: calls.append((event.step, event.steps)))
    assert [call for call in calls if call[1]] == [(step, 8) for step in range(9)]
    assert whole.size == tiled.size == (300, 140)
    assert esrgan.psnr(whole, tiled) >= 50
    assert esrgan.psnr(whole, esrgan.upscale(esrgan.random_weights(2), picture)) >= 50
    small = picture[:3, :2]
    assert upscaler.upscale(small).tobytes() == upscaler.upscale(small, tile_size=0).tobytes()


def test_every_channel_comes_back(upscaler: Upscaler) -> None:
    rgba = PIL.Image.fromarray(noise(24, 20, 4))
    larger = upscaler.upscale(rgba)
    assert (larger.mode, larger.size) == ("RGBA", (48, 40))
    assert larger.convert("RGB").tobytes() == upscaler.upscale(rgba.convert("RGB")).tobytes()
    alpha = rgba.getchannel("A")
    assert larger.getchannel("A").tobytes() == upscaler.upscale(alpha).tobytes()
    opaque = rgba.copy()
    opaque.putalpha(200)
    assert upscaler.upscale(opaque).getchannel("A").getextrema() == (200, 200)
    assert upscaler.upscale(rgba.convert("LA")).mode == "LA"
    grey = upscaler.upscale(rgba.convert("L"))
    assert (grey.mode, grey.size) == ("L", (48, 40))
    palette = rgba.convert("RGB").quantize(8)
    assert upscaler.upscale(palette).mode == "RGB"
    palette.info["transparency"] = 3
    assert upscaler.upscale(palette).mode == "RGBA"
    assert (
        upscaler.upscale(noise(24, 20, 1).astype(np.uint16) * 257).tobytes()
        == upscaler.upscale(noise(24, 20, 1)).tobytes()
    )


def test_repeats_and_what_the_picture_says(upscaler: Upscaler, tmp_path: Path) -> None:
    photo = PIL.Image.fromarray(noise(16, 12))
    photo.info["icc_profile"] = b"profile"
    again = upscaler.upscale(upscaler.upscale(photo))
    larger = upscaler.upscale(photo, repeats=2)
    assert larger.size == (64, 48)
    assert larger.tobytes() == again.tobytes()
    assert larger.info["icc_profile"] == b"profile"
    assert larger.info["parameters"] == "Postprocess upscale by: 4, Postprocess upscaler: twice"
    drawn = sdcpp_py.images.with_parameters(photo, "a cat, é\nSteps: 4")
    for name in ("drawn.png", "drawn.jpg", "drawn.webp"):
        drawn.save(tmp_path / name)
        text = upscaler.upscale(tmp_path / name).info["parameters"]
        assert text == "a cat, é\nSteps: 4, Postprocess upscale by: 2, Postprocess upscaler: twice"


def test_what_cannot_be_done_is_said(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[str, Any] = {"tile_size": 40, "repeats": 0}
    for name, value in wrong.items():
        with pytest.raises(ArgumentError, match=f"^{name} must be"):
            upscaler.upscale(noise(8, 8), **{name: value})
    with pytest.raises(ArgumentError, match="^image must be a Pillow image"):
        upscaler.upscale(3)  # type: ignore[arg-type]
    monkeypatch.setattr("sdcpp_py.modes.request.host_memory", lambda: 10_000)
    monkeypatch.setattr("sdcpp_py.modes.request._LITTLE", 0)
    with pytest.raises(ArgumentError, match="use fewer repeats, or a smaller picture"):
        upscaler.upscale(noise(16, 16), repeats=2)


def spoiled(**changes: Any) -> esrgan.Weights:
    weights = esrgan.random_weights(2)
    for name, value in changes.items():
        key = name.replace("__", ".")
        weights[key] = value if value is not None else weights.pop(key)[..., :1]
    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (spoiled(conv_up3__weight=np.zeros((12, 12, 3, 3), np.float16)), "more than 4 times larger"),
        (spoiled(conv_first__weight=np.zeros((12, 4, 3, 3), np.float16)), "takes 4 channels; the engine knows"),
        (spoiled(conv_hr__weight=None), r"does not fit: tensor 'conv_hr.weight' has shape"),
        ({"body.0.weight": np.zeros((8, 3, 3, 3), np.float16)}, "holds nothing that the engine knows"),
        (spoiled(conv_body__weight=np.full((12, 12, 3, 3), np.nan, np.float16)), "not finite"),
    ],
)
def test_what_is_no_upscaler_is_said(weights: esrgan.Weights, message: str, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "m.safetensors")
    with pytest.raises(sdcpp_py.SdcppError, match=message), Upscaler(tmp_path / "m.safetensors") as loaded:
        loaded.upscale(noise(8, 8))


def test_its_life(model: Path, checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="^upscaler: .* holds a whole checkpoint .*, not an upscaler$"):
        Upscaler(checkpoint)
    with Upscaler(model, progress=False) as upscaler:
        before = upscaler.upscale(noise(40, 40), tile_size=32).tobytes()

        def stop(event: sdcpp_py.ProgressEvent) -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            upscaler.upscale(noise(40, 40), progress=stop)
        with pytest.raises(CancelledError):
            upscaler.upscale(noise(40, 40), tile_size=32, progress=lambda *_: upscaler.cancel())
        assert upscaler.upscale(noise(40, 40), tile_size=32).tobytes() == before, "it works on"
        with pytest.raises(ArgumentError, match="^an Upscaler object cannot be copied"):
            copy.copy(upscaler)
        assert {row.module for row in upscaler.memory_report().modules} == {"upscaler"}
        with pytest.raises(ArgumentError, match="has its model"):
            upscaler.__init__(model)  # type: ignore[misc]
    assert repr(upscaler) == "<Upscaler twice.safetensors closed>"
    with pytest.raises(ClosedError, match="^this Upscaler object cannot be used: it was closed$"):
        upscaler.upscale(noise(8, 8))


@in_child
def test_placement_never_changes_a_pixel(model: Path) -> None:
    loopback = Loopback()
    picture = noise(50, 40)

    def draw(**options: Any) -> tuple[str, Any]:
        with Upscaler(model, threads=1, **options) as upscaler:
            pixels = upscaler.upscale(picture, tile_size=32).tobytes()
            return hashlib.sha256(pixels).hexdigest(), (
                upscaler.plan,
                upscaler.memory_report(),
                upscaler.transfer_report(),
            )

    on_cpu, _ = draw(runtime_backend="cpu")
    offloaded: dict[str, Any] = {"runtime_backend": "upscaler=loopback0", "params_backend": "cpu"}
    pinned, (plan, memory, transfers) = draw(**offloaded)
    assert pinned == on_cpu
    (row,) = memory.modules
    assert (row.module, row.pinned, row.buffer_type) == ("upscaler", True, "Loopback_Host")
    assert 0 < next(each for each in plan.modules if each.module == "upscaler").bytes <= row.bytes
    assert transfers.total.to_device_bytes_pageable == 0
    streamed, (_, _, transfers) = draw(**offloaded, stream_layers=True)
    assert streamed == on_cpu
    assert [stream.runner for stream in transfers.streams] == ["esrgan"]
    assert draw(**offloaded, pin_params="never")[0] == on_cpu
    assert draw(runtime_backend="loopback0")[0] == on_cpu
    with pytest.raises(sdcpp_py.DeviceMemoryError, match=r"max_vram to .*tile"):
        draw(**offloaded, max_vram=0.00001)
    with pytest.raises(sdcpp_py.PlacementError, match="pin budget"):
        Upscaler(model, **offloaded, pin_params="require", pin_budget=0.0)
    books = loopback.books()
    assert books["device_bytes"] == books["host_bytes"] == books["violations"] == 0
