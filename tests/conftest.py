"""What the tests share: models to load, and a header that names what is tested."""

from __future__ import annotations

import faulthandler
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import sdcpp_py
from sdcpp_py import engine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from make_checkpoint import (  # noqa: E402  (scripts/ is no package)
    checkpoint_shapes,
    write_checkpoint,
    write_lora,
    write_safetensors,
)


def pytest_report_header() -> list[str]:
    report = sdcpp_py.doctor()
    built = report["engine"] or {}
    names = ", ".join(device["name"] for device in report["devices"])
    return [f"engine: {built.get('engine_commit')}, ggml {built.get('ggml')}; devices: {names or report['problems']}"]


def pytest_configure() -> None:
    # How long an example takes says how busy the machine is; pytest-timeout finds what hangs.
    hypothesis.settings.register_profile("sdcpp", deadline=None)
    hypothesis.settings.load_profile("sdcpp")
    # A segfault in native code names the test that was running.
    faulthandler.enable()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.x checkpoint with random weights."""
    path = tmp_path_factory.mktemp("models") / "tiny-sd1.safetensors"
    write_checkpoint("sd1", path, tiny=True)
    return path


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for the tiny checkpoint's UNet and text encoder."""
    path = tmp_path_factory.mktemp("models") / "tiny-lora.safetensors"
    write_lora(path, tiny=True)
    return path


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ControlNet, a TAE and an upscaler for the tiny checkpoint, all random."""
    folder = tmp_path_factory.mktemp("parts")
    unet = "model.diffusion_model."
    control = {
        name.replace(unet, "control_model."): shape
        for name, shape in checkpoint_shapes("sd1", tiny=True).items()
        if name.startswith((f"{unet}time_embed", f"{unet}input_blocks", f"{unet}middle_block"))
    }
    channels = control["control_model.input_blocks.0.0.weight"][0]
    widths = [channels * factor for factor in (1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 4)]
    control.update({f"control_model.zero_convs.{i}.0.weight": (ch, ch, 1, 1) for i, ch in enumerate(widths)})
    control.update({f"control_model.zero_convs.{i}.0.bias": (ch,) for i, ch in enumerate(widths)})
    control["control_model.middle_block_out.0.weight"] = (widths[-1], widths[-1], 1, 1)
    control["control_model.middle_block_out.0.bias"] = (widths[-1],)
    for i, (ch_in, ch_out) in enumerate(itertools.pairwise((3, 16, 16, 32, 32, 96, 96, 256, channels))):
        control.update(conv(f"control_model.input_hint_block.{2 * i}", ch_in, ch_out))
    tae = {**conv("decoder.layers.0", 4, 64), **conv("decoder.layers.18", 64, 3)}
    for i in (6, 11, 16):
        tae[f"decoder.layers.{i}.weight"] = (64, 64, 3, 3)
    for i in (2, 3, 4, 7, 8, 9, 12, 13, 14, 17):
        for j in (0, 2, 4):
            tae.update(conv(f"decoder.layers.{i}.conv.{j}", 64, 64))
    upscaler = {**conv("conv_first", 3, 64), **conv("conv_last", 64, 3)}
    for name in ("conv_body", "conv_hr", "conv_up1"):
        upscaler.update(conv(name, 64, 64))
    for block, layer in itertools.product((1, 2, 3), (1, 2, 3, 4, 5)):
        name = f"body.0.rdb{block}.conv{layer}"
        upscaler.update(conv(name, 64 + 32 * (layer - 1), 32 if layer < 5 else 64))
    for name, shapes in {"control": control, "tae": tae, "upscaler": upscaler}.items():
        write_safetensors(folder / f"{name}.safetensors", shapes, dtype="f16", seed=0, metadata={"format": "pt"})
    return folder


def conv(name: str, ch_in: int, ch_out: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a 3x3 convolution."""
    return {f"{name}.weight": (ch_out, ch_in, 3, 3), f"{name}.bias": (ch_out,)}


@pytest.fixture(scope="session")
def sd(checkpoint: Path) -> Iterator[sdcpp_py.StableDiffusion]:
    """The tiny model, loaded once."""
    with sdcpp_py.StableDiffusion(checkpoint) as loaded:
        yield loaded


class NativePlacement:
    """Stands in for the native half of placement: a GPU, weights of known size, and what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights = {"diffusion": 40 << 20, "te": 20 << 20, "vae": 10 << 20}
        self.refuses: tuple[str, ...] = ()
        self.calls: list[str] = []
        self.surveyed: Mapping[str, Any] = {}
        self.options: Mapping[str, Any] = {}
        self.placements: Sequence[Mapping[str, Any]] = ()
        new, free, found = engine.context_new, engine.context_free, engine.device_list()
        gpu = {**found[0], "name": "Fake0", "kind": "gpu", "backend": "Fake", "host_buffer_type": "Fake_Host"}
        gpu["memory_total"] = gpu["memory_free"] = 8 << 30

        def context_new(options: Any, embeddings: Any, progress: Any, **more: Any) -> Any:
            assert set(more) == {"placements"}
            self.options, self.placements = options, more["placements"]
            self.calls.append("new placements" if self.placements else "new")
            return new(options, embeddings, progress)

        def context_free(context: Any) -> None:
            self.calls.append("free")
            free(context)

        monkeypatch.setattr(engine, "context_new", context_new)
        monkeypatch.setattr(engine, "context_free", context_free)
        monkeypatch.setattr(engine, "device_list", lambda: [*found, gpu])
        for name in ("weights_survey", "context_memory", "context_transfers", "context_streams"):
            monkeypatch.setattr(engine, name, getattr(self, name), raising=False)

    def weights_survey(self, options: Mapping[str, Any]) -> dict[str, int]:
        self.calls.append("survey")
        self.surveyed = options
        return dict(self.weights)

    def context_memory(self, context: Any) -> list[dict[str, Any]]:
        rows = []
        for place in self.placements:
            module = place["module"]
            pinned = place["pin"] and module not in self.refuses
            rows.append({
                "module": module,
                "runtime_device": place["runtime_device"],
                "params_device": place["params_device"],
                "wanted_buffer_type": "Fake_Host" if place["pin"] else place["params_device"],
                "buffer_type": "Fake_Host" if pinned else place["params_device"],
                "pinned": pinned,
                "bytes": self.weights.get(module, 0),
                "pinned_bytes": self.weights.get(module, 0) if pinned else 0,
                "tensors": 3,
                "reason": "the driver refused" if module in self.refuses else "",
            })  # fmt: skip
        return [row for row in rows if row["bytes"]]

    def context_transfers(self, context: Any) -> list[dict[str, Any]]:
        return [
            {"module": row["module"], "to_device_bytes_pinned": row["bytes"], "to_device_bytes_pageable": 0,
             "from_device_bytes": 0, "seconds": 0.25, "copies": row["tensors"]}
            for row in self.context_memory(context)
        ]  # fmt: skip

    def context_streams(self, context: Any) -> list[dict[str, Any]]:
        return [
            {"module": row["module"], "runner": "net", "device": row["runtime_device"], "mode": "resident",
             "reason": "", "budget_bytes": 1 << 30, "peak_bytes": 50 << 20, "compute_bytes": 10 << 20,
             "weight_bytes": 40 << 20, "resident_bytes": 40 << 20, "streamed_bytes": 0, "slot_bytes": 0, "slots": 0,
             "borrowed_slots": 0,
             "passes": 2, "pass_seconds": 0.5, "copy_seconds": -1.0, "stall_seconds": -1.0, "resident": "a, b",
             "streamed": ""}
            for row in self.placements if row["stream"] and self.weights.get(row["module"])
        ]  # fmt: skip


@pytest.fixture
def native_placement(monkeypatch: pytest.MonkeyPatch) -> NativePlacement:
    """The native half of placement, replaced; contexts and images are real ones, made on the CPU."""
    return NativePlacement(monkeypatch)
