"""What the devices refuse, and what nobody can give: it falls back and says so, or is an error.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import cffi
import pytest

import sdcpp_py
from sdcpp_py import engine
from support.children import in_child
from support.loopback import Loopback
from support.placed_model import ON_CPU, ON_DEVICE, PINNED, Model, Pageable, assert_empty, draw, place, total


@in_child
def test_every_refused_host_allocation_falls_back(checkpoint: Path) -> None:
    loopback = Loopback()
    expected = draw(checkpoint, ON_CPU)
    said = Pageable()
    ways = ((1, 0), (0, 0), (0, 1))  # memory of ours is locked; the backend's own, which may be silently replaced
    for (ours, silent), (first, count) in itertools.product(ways, ((1, 1), (2, 1), (3, 1), (1, -1))):
        loopback.set(host_lock=ours, host_fallback=silent, refuse_host_alloc=first, refuse_host_alloc_count=count)
        said.lines.clear()
        with Model(checkpoint, PINNED) as model:
            loopback.reset()
            assert model.draw() == expected
            memory, transfers = model.memory(), model.transfers()
            missed = [row for row in memory.values() if not row["pinned"]]
            assert len(missed) == (1 if count == 1 else 3), (ours, silent, first, count)
            for row in missed:
                assert (row["wanted_buffer_type"], row["buffer_type"]) == ("Loopback_Host", "CPU")
                assert ("silently gave memory of type CPU" if silent else "Loopback_Host refused ") in row["reason"]
                assert row["pinned_bytes"] == 0
                moved = transfers[row["module"]]
                assert moved["to_device_bytes_pageable"] > moved["to_device_bytes_pinned"] == 0
            pageable = total(transfers, "to_device_bytes_pageable")
            assert loopback.books()["weight_upload_pageable_bytes"] == pageable
            assert len(said.lines) == 1, said.lines
            assert missed[0]["reason"] in said.lines[0] or count == -1
    loopback.set(refuse_host_alloc=0)
    assert_empty(loopback)


@in_child
def test_device_without_a_host_buffer_type(checkpoint: Path) -> None:
    loopback = Loopback(host_buffer=0)
    said = Pageable()
    with Model(checkpoint, PINNED) as model:
        for row in model.memory().values():
            assert (row["wanted_buffer_type"], row["buffer_type"], row["pinned"]) == ("CPU", "CPU", False)
            assert row["reason"] == "Loopback0 has no host buffer type"
        assert model.draw() == draw(checkpoint, ON_CPU)
    assert not said.lines
    assert_empty(loopback)


@in_child
def test_refused_device_memory_is_an_error(checkpoint: Path) -> None:
    """Each device allocation of a load and a picture in turn: an error that says so, and then it works on."""
    loopback = Loopback()
    for wanted in (ON_DEVICE, PINNED):
        expected = draw(checkpoint, wanted)
        refused = 0
        for number in range(1, 100):
            loopback.set(refuse_device_alloc=number, refuse_device_alloc_count=1)
            before = loopback.books()["device_refusals"]
            with contextlib.suppress(sdcpp_py.DeviceMemoryError), Model(checkpoint, wanted) as model:
                with contextlib.suppress(sdcpp_py.DeviceMemoryError):
                    assert model.draw() == expected
                if loopback.books()["device_refusals"] > before:
                    assert model.draw() == expected, number
            assert_empty(loopback)
            if loopback.books()["device_refusals"] == before:
                break
            refused += 1
        assert refused >= 3
        loopback.set(refuse_device_alloc=0)


@in_child
def test_pictures_before_one_that_fails_are_kept(checkpoint: Path) -> None:
    """Memory that is refused to the third picture of a batch, in a first pass and in a second one."""
    loopback = Loopback()
    with sdcpp_py.StableDiffusion(checkpoint, runtime_backend="Loopback0") as sd:
        for passes in (1, 2):
            options: dict[str, Any] = {"width": 64, "height": 64, "steps": 1, "seed": 1, "batch_count": 3}
            if passes == 2:
                options["hires"] = sdcpp_py.Hires(scale=2.0, steps=1)
            expected = sd.txt2img("a", **options)
            seen: list[int] = []

            def refuse(event: sdcpp_py.ProgressEvent, seen: list[int] = seen, passes: int = passes) -> None:
                if event.phase == "sampling" and event.picture == 3 and event.step == 0:
                    seen.append(event.step)
                    if len(seen) == passes:
                        loopback.set(refuse_device_alloc=1, refuse_device_alloc_count=1)

            with pytest.raises(sdcpp_py.DeviceMemoryError) as caught:
                sd.txt2img("a", **options, progress=refuse)
            done = caught.value.finished
            assert [image.tobytes() for image in done] == [image.tobytes() for image in expected[:2]], seen
            assert [image.info for image in done] == [image.info for image in expected[:2]]
            loopback.set(refuse_device_alloc=0)
            assert sd.txt2img("a", **options)[2].tobytes() == expected[2].tobytes()


@in_child
def test_weights_that_do_not_fit_say_so(checkpoint: Path) -> None:
    loopback = Loopback(memory_total=1e6)
    with pytest.raises(sdcpp_py.DeviceMemoryError, match=r"do not fit into the memory of Loopback0.*params_backend"):
        Model(checkpoint, ON_DEVICE)
    assert_empty(loopback)


@in_child
def test_unknown_names_are_errors(checkpoint: Path) -> None:
    Loopback()
    for wanted, words in (
        (place("Loopback0", modules=["unet"]), "there is no module unet, only diffusion, te, clip_vision"),
        (place("Loopback7", modules=["te"]), "module te: there is no device Loopback7, only "),
        (place("Loopback0", "Loopback7", modules=["te"]), "module te: there is no device Loopback7, only "),
        (place("CPU", modules=["te", "te"]), "module te is placed twice"),
    ):
        with pytest.raises(sdcpp_py.ModelError) as caught:
            Model(checkpoint, wanted)
        assert words in caught.value.engine_log[-1], caught.value.engine_log


@in_child
def test_stream_that_cannot_be_opened(checkpoint: Path) -> None:
    """A device that was asked for is an error; the default one is replaced by the CPU."""
    Loopback(max_streams=1)
    with Model(checkpoint, ON_DEVICE) as first:
        assert first.draw() == draw(checkpoint, ON_DEVICE), "contexts share the one stream"
    # Somebody else's stream, which the cache does not know.
    library = Path(str(engine.versions()["library"])).with_name("libggml.so")
    ffi = cffi.FFI()
    ffi.cdef("void* ggml_backend_init_by_name(const char* name, const char* parameters);")
    assert ffi.dlopen(str(library)).ggml_backend_init_by_name(b"Loopback0", ffi.NULL)
    with pytest.raises(sdcpp_py.ModelError) as caught:
        Model(checkpoint, ON_DEVICE)
    assert "device Loopback0 cannot be opened" in caught.value.engine_log[-1]
    with Model(checkpoint) as model:
        assert {row["runtime_device"] for row in model.memory().values()} == {"CPU"}
