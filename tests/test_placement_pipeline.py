"""Placement as a caller sees it: the embedded model on the loopback accelerator, with its weights in host memory.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from typing import Any

import pytest

import sdcpp_py
from sdcpp_py import PlacementError, StableDiffusion
from support.children import in_child
from support.loopback import Loopback

GIB = 1 << 30
PROMPT = "a red circle on a white background"
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 3}


class Warnings(logging.Handler):
    """Collects what the package warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger("sdcpp_py").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "sdcpp_py":
            self.lines.append(record.getMessage())


def draw(**options: Any) -> tuple[str, StableDiffusion]:
    """Return the hash of a picture's pixels and the object, closed, whose reports were read before."""
    with StableDiffusion(threads=1, **options) as sd:
        pixels = hashlib.sha256(sd.txt2img(PROMPT, **SMALL)[0].tobytes()).hexdigest()
        sd.seen = sd.plan, sd.memory_report(), sd.transfer_report()  # type: ignore[attr-defined]
    return pixels, sd


@in_child
def test_budgets_never_change_a_pixel() -> None:
    loopback = Loopback()
    offloaded = {"runtime_backend": "loopback0", "params_backend": "cpu"}
    on_cpu, _ = draw(runtime_backend="cpu")
    pinned, sd = draw(**offloaded)
    _, memory, transfers = sd.seen  # type: ignore[attr-defined]
    assert pinned == on_cpu
    loaded = [row for row in memory.modules if row.bytes]
    assert {row.module for row in loaded} == {"diffusion", "te", "vae"}
    assert all(row.pinned and row.buffer_type == "Loopback_Host" for row in loaded)
    assert transfers.total.to_device_bytes_pageable == 0
    assert transfers.total.to_device_bytes_pinned > 0
    assert loopback.books()["upload_pageable_bytes"] < 1 << 20, "inputs only, no weights"
    warnings = Warnings()
    everything = memory.bytes / GIB
    for share, expected in ((0.0, set()), (0.5, {"te", "vae"}), (0.8, {"diffusion", "vae"})):
        warnings.lines.clear()
        pixels, sd = draw(**offloaded, pin_budget=share * everything)
        _, memory, transfers = sd.seen  # type: ignore[attr-defined]
        assert pixels == on_cpu
        assert {row.module for row in memory.modules if row.pinned} == expected
        assert len(warnings.lines) == 1, warnings.lines
        assert transfers.total.to_device_bytes_pageable > 0
    warnings.lines.clear()
    assert draw(**offloaded, pin_params="never")[0] == on_cpu
    assert draw(**offloaded, pin_params="require")[0] == on_cpu
    assert draw(runtime_backend="loopback0")[0] == on_cpu
    assert warnings.lines == []


@in_child
def test_require_fails_before_anything_is_read() -> None:
    loopback = Loopback()
    with pytest.raises(PlacementError, match=r"pin_budget") as caught:
        StableDiffusion(params_backend="cpu", runtime_backend="gpu", pin_params="require", pin_budget=0.001)
    assert "MiB" in str(caught.value)
    assert loopback.books()["host_allocs"] == 0
    assert loopback.books()["device_allocs"] == 0


@in_child
def test_a_refused_pin_is_reported_or_raised() -> None:
    loopback = Loopback()
    offloaded = {"runtime_backend": "loopback0", "params_backend": "cpu"}
    on_cpu, _ = draw(runtime_backend="cpu")
    warnings = Warnings()
    for nth, silent in itertools.product((1, 2, 3), (0, 1)):
        warnings.lines.clear()
        loopback.set(refuse_host_alloc=nth, host_fallback=silent, host_lock=1 - silent)
        pixels, sd = draw(**offloaded)
        _, memory, _ = sd.seen  # type: ignore[attr-defined]
        assert pixels == on_cpu
        missed = [row for row in memory.modules if row.bytes and not row.pinned]
        assert len(missed) == 1
        said = "silently gave memory of type CPU" if silent else "refused"
        assert said in missed[0].reason
        assert len(warnings.lines) == 1
        loopback.set(refuse_host_alloc=nth)
        with pytest.raises(PlacementError, match=said):
            StableDiffusion(**offloaded, pin_params="require")


@in_child
def test_mixed_specs_on_two_devices() -> None:
    Loopback(2)
    on_cpu, _ = draw(runtime_backend="cpu")
    pixels, sd = draw(
        runtime_backend={"unet": "loopback1", "clip": "cpu", "default": "loopback0"}, params_backend="vae=cpu"
    )
    plan, memory, _ = sd.seen  # type: ignore[attr-defined]
    assert pixels == on_cpu
    found = {row.module: (row.runtime_device, row.params_device, row.pinned) for row in memory.modules if row.bytes}
    assert found == {
        "diffusion": ("Loopback1", "Loopback1", False),
        "te": ("CPU", "CPU", False),
        "vae": ("Loopback0", "CPU", True),
    }
    assert "Loopback1" in str(plan)
    with pytest.raises(sdcpp_py.ArgumentError, match="Loopback0"):
        StableDiffusion(runtime_backend="cuda0")
