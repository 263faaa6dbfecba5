"""Streaming as a caller sees it: the embedded model on the loopback accelerator, within small budgets.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import sdcpp_py
from sdcpp_py import DeviceMemoryError, StableDiffusion, Tiling, TransferReport, cli
from support.children import in_child
from support.loopback import Loopback

GIB = 1 << 30
PROMPT = "a red circle on a white background"
OFFLOAD: dict[str, Any] = {"runtime_backend": "loopback0", "params_backend": "cpu", "threads": 1}
BUDGET = 0.006  # GiB; the diffusion model's weights and compute buffer take 0.0101 for 64x64 pixels


def draw(sd: StableDiffusion, side: int = 64, **more: Any) -> str:
    """Return the hash of a picture's pixels."""
    images = sd.txt2img(PROMPT, width=side, height=side, steps=3, seed=3, **more)
    return hashlib.sha256(images[0].tobytes()).hexdigest()


def on_cpu() -> str:
    """Return the hash of the picture that the CPU draws."""
    with StableDiffusion(runtime_backend="cpu", threads=1) as sd:
        return draw(sd)


def rows(report: TransferReport) -> dict[str, sdcpp_py.NetworkStream]:
    return {row.module: row for row in report.streams}


@in_child
def test_layers_are_streamed_within_the_budget() -> None:
    loopback = Loopback()
    expected = on_cpu()
    loopback.reset()
    with StableDiffusion(max_vram=BUDGET, stream_layers=True, **OFFLOAD) as sd:
        assert all(row.streamed for row in sd.plan.modules)
        assert sd.transfer_report().streams == (), "nothing was computed yet"
        assert draw(sd) == expected
        report = sd.transfer_report()
    found = rows(report)
    assert {module: row.mode for module, row in found.items()} == {
        "te": "resident",
        "diffusion": "overlapped",
        "vae": "resident",
    }
    unet = found["diffusion"]
    assert (unet.runner, unet.device, unet.passes) == ("unet", "Loopback0", 6)
    assert unet.resident_bytes + unet.streamed_bytes == unet.weight_bytes
    assert unet.streamed
    assert not set(unet.streamed) & set(unet.resident)
    assert unet.hidden is not None
    for row in found.values():
        assert row.pinned
        assert 0 < row.peak_bytes <= row.budget_bytes
        assert row.budget_bytes == pytest.approx(BUDGET * GIB, rel=1e-6)
    assert loopback.books()["device_bytes_peak"] <= unet.budget_bytes
    moved = {row.module: row.bytes for row in report.modules}
    assert (unet.lanes, unet.graphs, unet.copied_bytes) == (2, 3, 3 * unet.streamed_bytes)
    assert moved["diffusion"] >= 2 * unet.streamed_bytes + unet.resident_bytes * 0.9


@in_child
def test_everything_stays_where_it_fits() -> None:
    Loopback()
    expected = on_cpu()
    with StableDiffusion(stream_layers=True, **OFFLOAD) as sd:
        assert draw(sd) == expected
        report = sd.transfer_report()
        copied = report.total.bytes
        assert draw(sd) == expected
        assert sd.transfer_report().total.bytes == copied, "nothing is copied again"
    assert {row.mode for row in report.streams} == {"resident"}
    assert all("would do for it" in row.advice for row in report.streams)
    assert report.streams[0].budget_bytes == sd.plan.device_budgets[0].bytes


@in_child
def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    Loopback()
    expected = on_cpu()
    steps: list[int] = []
    options = {"progress": lambda event: steps.append(event.step), **OFFLOAD}
    with StableDiffusion(max_vram=BUDGET, stream_layers=True, **options) as sd:
        steps.clear()
        with pytest.raises(
            DeviceMemoryError, match=r"^module vae \(vae\) needs at least .* GiB of Loopback0"
        ) as caught:
            draw(sd, 128)
        assert "set max_vram to 0.0075 or more, or draw a smaller picture or in smaller tiles" in str(caught.value)
        assert not any(steps), "nothing was sampled in vain"
        assert "\n" not in str(caught.value)
        assert draw(sd) == expected, "it works on"
        assert any(steps)
        tiled = draw(sd, 128, vae_tiling=Tiling(tile_size_x=8, tile_size_y=8))
        assert rows(sd.transfer_report())["vae"].passes > 1
        with pytest.raises(DeviceMemoryError, match=r"^module diffusion \(unet\) needs at least"):
            draw(sd, 512, vae_tiling=Tiling(tile_size_x=8, tile_size_y=8))
        assert rows(sd.transfer_report())["vae"].advice.startswith("idle")
        assert draw(sd) == expected
    with StableDiffusion(max_vram=0.0075, stream_layers=True, **OFFLOAD) as sd:
        draw(sd, 128)
        assert draw(sd, 128, vae_tiling=Tiling(tile_size_x=8, tile_size_y=8)) == tiled
    with StableDiffusion(max_vram=0.001, stream_layers=True, **OFFLOAD) as sd:
        with pytest.raises(DeviceMemoryError, match="module te") as caught:
            draw(sd)
        assert "picture" not in str(caught.value), "its size does not matter to the text encoder"
        assert sd.transfer_report().streams == ()
    assert sd.closed


@in_child
def test_what_runs_on_the_cpu_is_not_streamed() -> None:
    Loopback()
    expected = on_cpu()
    placed = {**OFFLOAD, "runtime_backend": "vae=cpu,all=loopback0"}
    with StableDiffusion(max_vram=BUDGET, stream_layers=True, **placed) as sd:
        assert draw(sd) == expected
        assert rows(sd.transfer_report()).keys() == {"te", "diffusion"}
        draw(sd, 128)


@in_child
def test_a_budget_without_streaming_takes_turns() -> None:
    loopback = Loopback()
    expected = on_cpu()
    with StableDiffusion(**OFFLOAD) as sd:
        draw(sd)
    whole = loopback.books()["device_bytes_peak"]
    loopback.reset()
    with StableDiffusion(max_vram=BUDGET, **OFFLOAD) as sd:
        assert "in turn" in str(sd.plan)
        assert draw(sd) == expected
        unet = rows(sd.transfer_report())["diffusion"]
    assert (unet.mode, unet.reason, unet.hidden) == ("in turn", "", 0.0)
    assert unet.advice.startswith("in turn: stream_layers lets copies overlap")
    assert loopback.books()["device_bytes_peak"] <= BUDGET * GIB < whole


@in_child
def test_pageable_weights_and_a_device_without_events() -> None:
    loopback = Loopback()
    expected = on_cpu()
    with StableDiffusion(max_vram=BUDGET, stream_layers=True, pin_params="never", **OFFLOAD) as sd:
        assert draw(sd) == expected
        unet = rows(sd.transfer_report())["diffusion"]
    assert (unet.mode, unet.pinned, unet.hidden) == ("overlapped", False, None)
    assert unet.advice.startswith("pageable: ")
    loopback.set(events=0)
    with StableDiffusion(max_vram=BUDGET, stream_layers=True, **OFFLOAD) as sd:
        assert draw(sd) == expected
        unet = rows(sd.transfer_report())["diffusion"]
    assert (unet.mode, unet.hidden) == ("in turn", 0.0)
    assert unet.reason.startswith("Loopback0 has no events")
    assert unet.advice.startswith("in turn: ")


@in_child
def test_the_command_streams_and_reports(tmp_path: Path) -> None:
    Loopback()
    expected = on_cpu()
    small = ["-W", "64", "-H", "64", "--steps", "3", "--seed", "3", "-t", "1", "-o", str(tmp_path / "a.png")]
    placed = ["--runtime-backend", "loopback0", "--params-backend", "cpu", "--stream-layers", "--max-vram", str(BUDGET)]
    assert cli.main(["txt2img", "-p", PROMPT, *small, *placed, "--report", str(tmp_path / "r.json")]) == 0
    content = json.loads((tmp_path / "r.json").read_text())
    streams = {row["module"]: row for row in content["transfer"]["streams"]}
    assert streams["diffusion"]["mode"] == "overlapped"
    assert streams["diffusion"]["advice"]
    from PIL import Image

    with Image.open(tmp_path / "a.png") as image:
        assert hashlib.sha256(image.tobytes()).hexdigest() == expected
    assert cli.main(["txt2img", "-p", PROMPT, *small, "-W", "512", "-H", "512", *placed]) == 1
