"""The plan alone: with nothing asked a model draws wherever it fits, and goes elsewhere when memory is gone.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import sdcpp_py
from sdcpp_py import BudgetPart, DeviceMemoryError, PinBudget, StableDiffusion, Tiling, cli, moving, placement
from sdcpp_py.placement import on_disk
from support.children import in_child
from support.loopback import Loopback
from support.placed_model import assert_empty

MIB = 1 << 20
PROMPT = "a red circle on a white background"


def draw(sd: StableDiffusion, side: int = 64, **more: Any) -> str:
    """Return the hash of a picture's pixels."""
    images = sd.txt2img(PROMPT, width=side, height=side, steps=1, seed=3, **more)
    return hashlib.sha256(images[0].tobytes()).hexdigest()


def on_cpu(side: int = 64, **more: Any) -> str:
    """Return the hash of the picture that the CPU draws."""
    with StableDiffusion(runtime_backend="cpu", threads=1) as sd:
        return draw(sd, side, **more)


def places(sd: StableDiffusion) -> dict[str, str]:
    assert sd.plan.choice is not None
    return {group: str(place) for group, place in sd.plan.choice.chosen.places.items()}


@in_child
def test_it_draws_with_whatever_memory_there_is() -> None:
    loopback = Loopback()
    expected = on_cpu(128)
    found = []
    for size in (2000, 22, 14, 1):
        loopback.set(memory_total=size * MIB)
        loopback.reset()
        with StableDiffusion(threads=1) as sd:
            assert draw(sd, 128) == expected, size
            found.append(places(sd))
            report = sd.plan_report()
            assert report is not None
            assert report.replanned == 0, "the first plan was right"
            assert set(report.predicted) == {"text", "sampling", "decoding"}
            assert report.ratio is not None
            assert "predicted" in str(report)
            assert sd.plan.seconds == pytest.approx(sum(sd.plan.choice.chosen.phases.values()))  # type: ignore[union-attr]
            assert {row.module: row.runtime_device for row in sd.plan.modules if row.bytes} == {
                row.module: row.runtime_device for row in sd.memory_report().modules
            }
        assert loopback.books()["device_bytes_peak"] <= size * MIB
        assert_empty(loopback)
    assert set(found[0].values()) == {"Loopback0"}
    # Which module is streamed there is a matter of how fast the bus was measured to be.
    assert {place.split()[0] for place in found[1].values()} == {"Loopback0"}
    assert any("streamed" in place for place in found[1].values())
    assert found[2]["diffusion"] == "Loopback0 streamed"
    assert set(found[3].values()) == {"CPU"}


@in_child
def test_it_goes_elsewhere_and_comes_back() -> None:
    loopback = Loopback()
    moving.LOADING_SECONDS = 0.0  # of a model that is drawn with in less
    expected = on_cpu(128)
    loopback.set(memory_total=40 * MIB)
    with StableDiffusion(threads=1) as sd:
        assert draw(sd, 128) == expected
        loopback.set(memory_reserved=36 * MIB)  # another program's
        results: list[Any] = [None] * 3

        def work(index: int) -> None:
            results[index] = draw(sd, 128)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 3
        report = sd.plan_report()
        assert report is not None
        assert report.replanned == 1
        assert places(sd)["vae"] == "CPU"
        loopback.set(memory_reserved=0)
        assert draw(sd, 128) == expected
        assert set(places(sd).values()) == {"Loopback0"}, "where it gains more than loading takes"
        assert "loaded anew 2 times" in str(sd.plan_report())
        images = [image.tobytes() for image in sd.stream(PROMPT, width=128, height=128, steps=1, seed=3, batch_count=2)]
        assert hashlib.sha256(images[0]).hexdigest() == expected
    assert_empty(loopback)
    assert sd.closed


@in_child
def test_while_it_is_loaded_anew(checkpoint: Path) -> None:
    """Reports of other threads wait, those of the call itself say so; what cannot be loaded now is by the next call."""
    loopback = Loopback()
    moving.LOADING_SECONDS = 0.0
    model = checkpoint.with_name("moved.safetensors")
    shutil.copy(checkpoint, model)
    with StableDiffusion(model, runtime_backend="cpu", threads=1) as sd:
        expected = draw(sd)
    loopback.set(memory_total=400 * MIB)
    heard: list[Any] = []
    threads: list[threading.Thread] = []

    def ask() -> None:
        heard.append([len(sd.memory_report().modules), sd.transfer_report().total.copies >= 0, *sd.modes])

    def hear(event: sdcpp_py.ProgressEvent) -> None:
        if event.phase == "loading" and loopback.get("memory_reserved"):
            if error is not None:
                raise error
            assert not sd.closed
            with pytest.raises(sdcpp_py.ClosedError, match="loaded anew: ask when its call has ended"):
                sd.memory_report()
            threads.append(threading.Thread(target=ask))
            threads[-1].start()

    error: BaseException | None = None
    with StableDiffusion(model, threads=1, progress=hear) as sd:
        assert draw(sd) == expected
        loopback.set(memory_reserved=390 * MIB)
        gone = model.rename(model.with_suffix(".gone"))
        for _ in range(2):
            with pytest.raises(sdcpp_py.ModelError, match=r"moved.safetensors"):
                draw(sd)
            assert not sd.closed
        gone.rename(model)
        error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            draw(sd)
        error = None
        assert draw(sd) == expected
        for thread in threads:
            thread.join()
        assert heard, "somebody asked while it was loaded"
        assert heard == [[3, True, "txt2img", "img2img", "inpaint"]] * len(heard)
        error = KeyboardInterrupt()
        loopback.set(memory_reserved=400 * MIB)
        with pytest.raises(KeyboardInterrupt):
            draw(sd)
    assert sd.closed
    with pytest.raises(sdcpp_py.ClosedError, match="it was closed"):
        sd.memory_report()
    assert_empty(loopback)


@in_child
def test_a_picture_that_does_not_fit_is_decoded_in_tiles() -> None:
    """The parameters say so, and the pixels are those of the same tiles asked for on the CPU."""
    loopback = Loopback()
    tiles = Tiling(tile_size_x=32, tile_size_y=32)
    expected = on_cpu(320, vae_tiling=tiles)
    loopback.set(memory_total=60 * MIB)
    with StableDiffusion(threads=1) as sd:
        image = sd.txt2img(PROMPT, width=320, height=320, steps=1, seed=3)
        assert hashlib.sha256(image[0].tobytes()).hexdigest() == expected
        assert "VAE tile size: 32" in image[0].info["parameters"]
        report = sd.plan_report()
        assert report is not None
        assert (report.tile, report.replanned) == (32, 0)
        loopback.set(refuse_device_alloc=1)  # what is free is not always had
        draw(sd, 64)
        assert sd.plan_report() is not None
        # What was asked stays as it is asked.
    with StableDiffusion(threads=1, runtime_backend="loopback0") as sd:
        assert sd.plan.choice is None
        with pytest.raises(DeviceMemoryError):
            draw(sd, 320)
        assert sd.plan_report() is None
    assert_empty(loopback)


def short_of_host_memory(loopback: Loopback, left: int) -> None:
    """Leave so many bytes of host memory for weights; rings take none of it."""
    on_disk.RING_BYTES = 0
    placement.measure_pin_budget = lambda devices, **_: PinBudget(  # type: ignore[assignment]
        (BudgetPart("MemAvailable", max(0, left - loopback.books()["host_bytes"]), "assumed"),)
    )


@in_child
def test_weights_stay_on_disk_when_host_memory_is_short() -> None:
    """Chosen before loading, with some of them kept in host memory; and when memory of the device is gone."""
    loopback = Loopback()
    expected = on_cpu(128)
    loopback.set(memory_total=14 * MIB)
    short_of_host_memory(loopback, 7 * MIB)
    with StableDiffusion(threads=1) as sd:
        assert draw(sd, 128) == expected
        assert places(sd)["diffusion"] == "Loopback0 from disk"
        choice = sd.plan.choice
        assert choice is not None
        assert 0 < choice.chosen.kept_bytes <= 7 * MIB
        assert any("of host memory, of which" in each.reason for each in choice.rejected), "what does not fit, and why"
        assert (choice.machine.disk_rate or 0.0) > 1e6, "measured"
        memory = {row.module: row for row in sd.memory_report().modules}["diffusion"]
        kept = {row.module: row.kept_bytes for row in sd.plan.modules}["diffusion"]
        assert memory.params_device == "disk"
        assert kept - 4 * MIB < memory.bytes <= kept + 4 * MIB
        assert sd.transfer_report().total.from_disk_bytes > memory.disk_bytes
        report = sd.plan_report()
        assert report is not None
        assert report.replanned == 0
        assert draw(sd, 128) == expected, "again"
        assert sd.plan_report().replanned == 0  # type: ignore[union-attr]
        loopback.set(memory_total=2000 * MIB)
        moved = draw(sd, 128)
        assert moved == expected
    assert_empty(loopback)
    with StableDiffusion(threads=1) as sd:
        assert set(places(sd).values()) == {"Loopback0"}, "no host memory is needed there"
        loopback.set(memory_reserved=1986 * MIB)  # another program's
        assert draw(sd, 128) == expected
        assert places(sd)["diffusion"] == "Loopback0 from disk"
        report = sd.plan_report()
        assert report is not None
        assert report.replanned == 1
    assert_empty(loopback)


@in_child
def test_modules_of_two_gpus_go_apart() -> None:
    loopback = Loopback(2)
    expected = on_cpu(128)
    loopback.set(memory_total=13 * MIB)
    with StableDiffusion(threads=1) as sd:
        assert draw(sd, 128) == expected
        assert {place.removesuffix(" streamed") for place in places(sd).values()} == {"Loopback0", "Loopback1"}
    assert_empty(loopback)


def test_the_command_prints_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "plan.json"
    asked = ["--dry-run", "--assume", "gpu=12GiB,ram=16GiB,bus=12GB/s", "--report", str(report)]
    assert cli.main(["txt2img", "-p", "a cat", "-W", "256", "-H", "256", *asked]) == 0
    out = capsys.readouterr().out
    assert "chosen for txt2img 256x256, 20 steps" in out
    assert "assumed machine: GPU0 12.00 GiB" in out
    written = json.loads(report.read_text())["plan"]["choice"]
    assert written["machine"]["assumed"] == "gpu=12GiB,ram=16GiB,bus=12GB/s"
    assert cli.main(["txt2img", "-p", "a cat", "--assume", "gpu=1GiB"]) != 0
    assert "--assume has no effect without --dry-run" in capsys.readouterr().err
    assert cli.main(["img2img", "-p", "a cat", "-i", "missing.png", "--dry-run"]) != 0
    assert sdcpp_py.plan(mode="img2img", assume={"gpu": "12GiB", "ram": "16GiB"}).seconds
