"""What the tests share: models to load, and a header that names what is tested."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import sdcpp_py
from sdcpp_py import _native

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from make_checkpoint import write_checkpoint  # noqa: E402  (scripts/ is no package)


def pytest_report_header() -> list[str]:
    report = sdcpp_py.doctor()
    engine = report["engine"] or {}
    names = ", ".join(device["name"] for device in report["devices"])
    return [f"engine: {engine.get('engine_commit')}, ggml {engine.get('ggml')}; devices: {names or report['problems']}"]


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
        new, free, found = _native.context_new, _native.context_free, _native.device_list()
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

        monkeypatch.setattr(_native, "context_new", context_new)
        monkeypatch.setattr(_native, "context_free", context_free)
        monkeypatch.setattr(_native, "device_list", lambda: [*found, gpu])
        for name in ("weights_survey", "context_memory", "context_transfers", "context_streams"):
            monkeypatch.setattr(_native, name, getattr(self, name), raising=False)

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
             "passes": 2, "pass_seconds": 0.5, "copy_seconds": -1.0, "stall_seconds": -1.0, "resident": "a, b",
             "streamed": ""}
            for row in self.placements if row["stream"] and self.weights.get(row["module"])
        ]  # fmt: skip


@pytest.fixture
def native_placement(monkeypatch: pytest.MonkeyPatch) -> NativePlacement:
    """The native half of placement, replaced; contexts and images are real ones, made on the CPU."""
    return NativePlacement(monkeypatch)
