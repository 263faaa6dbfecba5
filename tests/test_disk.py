"""Weights on disk: pixels never change, files are looked after, and what is read is counted.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import engine
from sdcpp_py.placement.on_disk import RING_BYTES
from sdcpp_py.placement.pinning import PinBudget
from support.checkpoints import write_checkpoint
from support.children import in_child
from support.loopback import Loopback
from support.model_formats import Tensor, fp8, read_safetensors, safetensors_of, torch_zip
from support.placed_model import assert_empty
from support.streaming import GIB, named_budget

ON_DISK: dict[str, Any] = {"runtime_backend": "loopback0", "params_backend": "disk", "pin_budget": 0.0}
PICTURE: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 1, "cfg_scale": 7.0, "batch_count": 2}


def drawn(sd: sdcpp_py.StableDiffusion, **more: Any) -> list[str]:
    """Return the hashes of the pixels of two guided pictures, which lanes draw at the same time."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in sd.txt2img("a cat", **{**PICTURE, **more})]


def on_cpu(model: Path | None, **options: Any) -> list[str]:
    with sdcpp_py.StableDiffusion(model, runtime_backend="cpu", **options) as sd:
        return drawn(sd)


def smallest(model: Path | None, **options: Any) -> float:
    """Return the smallest max_vram that draws."""
    budget = 0.001
    while True:
        with sdcpp_py.StableDiffusion(model, **ON_DISK, **options, max_vram=budget) as sd:
            try:
                drawn(sd)
                return budget
            except sdcpp_py.DeviceMemoryError as error:
                budget = named_budget(error)


@in_child
def test_pixels_and_reports(checkpoint: Path) -> None:
    loopback = Loopback()
    room = PinBudget.room
    for model in (None, checkpoint):
        expected = on_cpu(model)
        least = smallest(model)
        whole = 0
        for asked in (
            {"max_vram": least},
            {},  # all of it stays on the device
            {"max_vram": least, "pin_budget": RING_BYTES / GIB + 0.004},  # some of it stays in host memory
            {"max_vram": least, "pin_params": "never", "lora_apply_mode": "at_runtime"},
        ):
            # Where the system's cache has no room for the model, it is read past that.
            past_cache = "pin_budget" in asked
            PinBudget.room = property(lambda budget: 0) if past_cache else room  # type: ignore[method-assign, assignment]
            with sdcpp_py.StableDiffusion(model, **{**ON_DISK, **asked}) as sd:
                assert {row.past_cache for row in sd.plan.modules} == {past_cache}
                memory = sd.memory_report()
                assert {row.params_device for row in memory.modules} == {"disk"}
                assert all(row.params_device == "disk" and row.streamed for row in sd.plan.modules)
                whole = whole or memory.disk_bytes
                kept = sum(row.kept_bytes for row in sd.plan.modules)
                assert memory.disk_bytes > memory.bytes, "most of it"
                assert whole - kept <= memory.disk_bytes <= whole - 0.5 * kept
                pinned = {row.module for row in sd.plan.modules if row.pinned}
                assert {row.module for row in memory.modules if row.pinned} == pinned
                assert bool(pinned) == (kept > 0)
                loopback.reset()
                assert drawn(sd) == expected, asked
                total = sd.transfer_report().total
                books = loopback.books()
                assert total.to_device_bytes_pinned == books["upload_pinned_bytes"] > 0
                assert total.to_device_bytes_pageable >= books["weight_upload_pageable_bytes"]
                assert total.from_disk_bytes >= memory.disk_bytes
                if "max_vram" in asked:
                    assert max(stream.lanes for stream in sd.transfer_report().streams) > 1
                    assert books["device_bytes_peak"] <= least * GIB + 1
                    assert total.from_disk_bytes > memory.disk_bytes, "streamed: read for each step"
                assert "read from disk" in str(sd.transfer_report())
                assert drawn(sd) == expected, "again"
            assert_empty(loopback)


@in_child
def test_conversions_and_shared_places(checkpoint: Path) -> None:
    """Rows that become another type as they are read, GGUF, a transformer, and modules in several places."""
    loopback = Loopback()
    folder = checkpoint.parent
    gguf = folder / "model.gguf"
    sdcpp_py.convert(checkpoint, gguf, weight_type="q8_0")
    transformer = folder / "zimage.safetensors"
    write_checkpoint("zimage", transformer, tiny=True, dtype="bf16")
    cases: tuple[tuple[Path, dict[str, Any], Any], ...] = (
        (checkpoint, {"weight_type": "q8_0"}, "disk"),
        (gguf, {}, {"diffusion": "disk", "all": "cpu"}),
        (transformer, {}, "disk"),
    )
    for model, options, where in cases:
        asked = {**ON_DISK, "params_backend": where, "max_vram": smallest(model, **options)}
        with sdcpp_py.StableDiffusion(model, **asked, **options) as sd:
            assert drawn(sd) == on_cpu(model, **options), (model, options, where)
    with sdcpp_py.StableDiffusion(checkpoint, **{**ON_DISK, "runtime_backend": "te=cpu,all=loopback0"}) as sd:
        assert {row.module: row.params_device for row in sd.plan.modules}["te"] == "CPU"
        assert drawn(sd) == on_cpu(checkpoint)
    loopback.set(events=0)
    with sdcpp_py.StableDiffusion(checkpoint, **ON_DISK, max_vram=smallest(checkpoint)) as sd:
        assert drawn(sd) == on_cpu(checkpoint)
        assert {stream.mode for stream in sd.transfer_report().streams} <= {"in turn", "resident"}
    assert_empty(loopback)


@in_child
def test_types_that_ggml_lacks(checkpoint: Path) -> None:
    """Plain 8-bit floats become f16 as they are read; scaled ones, and packed files, are read whole and kept."""
    loopback = Loopback()
    weights = read_safetensors(checkpoint)
    large = {name for name, array in weights.items() if array.ndim == 2 and array.size >= 8192}
    plain = {
        name: fp8(array, "F8_E4M3" if index % 2 else "F8_E5M2") if name in large else array
        for index, (name, array) in enumerate(weights.items())
    }
    scaled: dict[str, Any] = {
        name: fp8(array, "F8_E4M3") if name in large else array for name, array in weights.items()
    }
    scaled |= {name.replace("weight", "weight_scale"): np.asarray(0.5, np.float32) for name in large}
    double = {name: array.astype(np.float64) if name in large else array for name, array in weights.items()}
    files = {
        "f16": checkpoint.read_bytes(),
        "plain": safetensors_of(plain),
        "scaled": safetensors_of(scaled),
        "double": safetensors_of(double),
        "packed": torch_zip({name: Tensor(array) for name, array in weights.items()}, compress=True),
    }
    stays, in_files = {}, {}
    for kind, content in files.items():
        model = checkpoint.with_name(f"{kind}.{'ckpt' if kind == 'packed' else 'safetensors'}")
        model.write_bytes(content)
        rows = {row["module"]: row for row in engine.stored_survey({"model_path": bytes(model)})}
        stays[kind] = {module: row["disk_bytes"] for module, row in rows.items()}
        with sdcpp_py.StableDiffusion(model, **ON_DISK) as sd:
            report = sd.memory_report()
            found = {row.module: row.disk_bytes for row in report.modules}
            assert all(abs(found[module] - size) <= 0.02 * size for module, size in stays[kind].items()), kind
            assert sd.plan.pinned_bytes == 0, "what cannot stay is not what host memory keeps of what can"
            expected = on_cpu(model)
            assert drawn(sd) == expected, kind
        in_files[kind] = sum(row["stored_bytes"] for row in rows.values())
    smaller = in_files["f16"] - in_files["plain"]
    assert smaller == sum(weights[name].size for name in large), "a byte for two"
    assert not any(stays["packed"].values())
    assert 0 < sum(stays["scaled"].values()) < sum(stays["plain"].values())
    assert_empty(loopback)


@in_child
def test_loras(checkpoint: Path, lora: Path) -> None:
    Loopback()
    loras = [sdcpp_py.Lora(lora, 0.8)]
    with sdcpp_py.StableDiffusion(checkpoint, runtime_backend="cpu", lora_apply_mode="at_runtime") as sd:
        expected = drawn(sd, loras=loras)
    with sdcpp_py.StableDiffusion(checkpoint, **ON_DISK) as sd:
        assert drawn(sd, loras=loras) == expected, "auto"
    with sdcpp_py.StableDiffusion(checkpoint, **ON_DISK, lora_apply_mode="immediately") as sd:
        with pytest.raises(sdcpp_py.ModelError, match=r"stays on disk: take lora_apply_mode='at_runtime'"):
            drawn(sd, loras=loras)
        assert drawn(sd) == on_cpu(checkpoint), "it works on"


@in_child
def test_files_that_change(checkpoint: Path) -> None:
    loopback = Loopback()
    model = checkpoint.with_name("changing.safetensors")
    shutil.copy(checkpoint, model)
    content, times = model.read_bytes(), model.stat()
    expected = on_cpu(model)
    with sdcpp_py.StableDiffusion(model, **ON_DISK, max_vram=smallest(model)) as sd:

        def cut(event: sdcpp_py.ProgressEvent) -> None:
            if event.phase == "sampling" and event.step == 1:
                os.truncate(model, 5000)

        with pytest.raises(sdcpp_py.ModelError, match=r"changing.safetensors was cut off while the model was loaded"):
            drawn(sd, progress=cut)
        with pytest.raises(sdcpp_py.ModelError, match=r"changing.safetensors was changed while the model was loaded"):
            drawn(sd)
        with model.open("r+b") as file:
            file.write(content)
        os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert drawn(sd) == expected, "the file is what it was"
        model.unlink()
        assert drawn(sd) == expected, "it is held open"
    assert_empty(loopback)


@in_child
def test_what_cannot_be(checkpoint: Path) -> None:
    Loopback()
    for asked, said in (
        ({"runtime_backend": "cpu", "params_backend": "disk"}, "the CPU reads weights where they lie"),
        ({"runtime_backend": "te=cpu,all=loopback0", "params_backend": "te=disk"}, "params_backend is 'disk' for te"),
        ({"runtime_backend": "disk"}, "device 'disk' is unknown"),
        ({**ON_DISK, "pin_params": "require"}, "nothing to pin: it stays on disk"),
    ):
        with pytest.raises(sdcpp_py.ArgumentError, match=said):
            sdcpp_py.StableDiffusion(checkpoint, **asked)


@pytest.mark.slow
@in_child
def test_a_model_larger_than_memory(tmp_path: Path) -> None:
    """2.1 GB of weights where the process may have 1 GiB."""
    loopback = Loopback()
    model = tmp_path / "model.safetensors"
    write_checkpoint("sd1", model)
    options = {**PICTURE, "steps": 1, "batch_count": 1}
    with sdcpp_py.StableDiffusion(model, runtime_backend="cpu") as sd:
        expected = drawn(sd, **options)
    with Path("/proc/self/status").open() as status:
        data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (data + GIB, data + GIB))
    with pytest.raises(sdcpp_py.SdcppError):
        sdcpp_py.StableDiffusion(model, runtime_backend="loopback0", params_backend="cpu")
    with sdcpp_py.StableDiffusion(model, **ON_DISK, max_vram=0.5) as sd:
        assert drawn(sd, **options) == expected
    assert_empty(loopback)
