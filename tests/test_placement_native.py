"""Placement at the border: where weights are allocated, what is copied, and that pixels never change.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import pytest
from child import Loopback, in_child
from make_checkpoint import write_safetensors
from test_native import resident_bytes

import sdcpp_py
from sdcpp_py import engine

MODULES = ("diffusion", "te", "vae")


def place(runtime: str, params: str | None = None, pin: bool = False, modules: Sequence[str] = MODULES) -> list[Any]:
    """Return the same placement for several modules."""
    return [{"module": name, "runtime_device": runtime, "params_device": params, "pin": pin} for name in modules]


PINNED = place("Loopback0", "CPU", pin=True)
PAGEABLE = place("Loopback0", "CPU")
ON_DEVICE = place("Loopback0")
ON_CPU = place("CPU")


class Model:
    """The tiny model, placed; a context manager."""

    def __init__(self, checkpoint: Path, placements: Sequence[Any] = (), **options: object) -> None:
        given = {"model_path": bytes(checkpoint), "n_threads": 1, "free_params_immediately": False, **options}
        self.context = engine.context_new(given, {}, None, placements)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        engine.context_free(self.context)

    def draw(self, *loras: tuple[Path, float], progress: Any = None, control: Any = None, **more: object) -> str:
        """Return the hash of a picture's pixels."""
        options = {"prompt": "a cat", "width": 64, "height": 64, "seed": 1, "sample_params": {"sample_steps": 1}}
        given = [{"path": bytes(path), "multiplier": multiplier} for path, multiplier in loras]
        pixels, _ = engine.image_generate(
            self.context, {**options, **more}, loras=given, progress=progress, control_image=control
        )
        return hashlib.sha256(pixels[0][2]).hexdigest()

    def memory(self) -> dict[str, dict[str, Any]]:
        return {row["module"]: row for row in engine.context_memory(self.context)}

    def transfers(self) -> dict[str, dict[str, Any]]:
        return {row["module"]: row for row in engine.context_transfers(self.context)}


def draw(checkpoint: Path, placements: Sequence[Any] = (), *loras: tuple[Path, float], **options: object) -> str:
    """Return the hash of one picture of a model that is loaded for it."""
    with Model(checkpoint, placements, **options) as model:
        return model.draw(*loras)


class Pageable(logging.Handler):
    """Collects what the engine's log says about pageable memory."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        logger = logging.getLogger("sdcpp_py.engine")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        if "pageable" in record.getMessage():
            self.lines.append(record.getMessage())


def total(rows: dict[str, dict[str, Any]], field: str) -> Any:
    return sum(row[field] for row in rows.values())


def assert_empty(loopback: Loopback) -> None:
    """Assert that nothing of any model is left on the devices."""
    books = loopback.books()
    left = {name: books[name] for name in ("device_bytes", "host_bytes", "streams_live", "events_live", "violations")}
    assert not any(left.values()), left


@in_child
def test_weights_are_pinned_and_copies_are_counted(checkpoint: Path) -> None:
    loopback = Loopback()
    with Model(checkpoint, PINNED) as model:
        memory = model.memory()
        assert set(memory) == set(MODULES)
        for row in memory.values():
            assert (row["runtime_device"], row["params_device"]) == ("Loopback0", "CPU")
            assert row["wanted_buffer_type"] == row["buffer_type"] == "Loopback_Host"
            assert row["pinned"] is True
            assert row["bytes"] == row["pinned_bytes"] > 0
            assert row["tensors"] > 0
            assert row["reason"] == ""
        assert loopback.books()["host_bytes"] == total(memory, "bytes")
        assert loopback.books()["device_bytes"] == 0
        loopback.reset()
        model.draw()
        books, transfers = loopback.books(), model.transfers()
        assert books["weight_upload_pageable_bytes"] == 0
        assert books["weight_upload_pinned_bytes"] == total(transfers, "to_device_bytes_pinned") > 0
        assert books["weight_upload_pinned_copies"] == total(transfers, "copies")
        assert total(transfers, "to_device_bytes_pageable") == total(transfers, "from_device_bytes") == 0
        for row in transfers.values():
            assert row["to_device_bytes_pinned"] > 0
            assert 0 < row["seconds"] < 60
    assert_empty(loopback)


@in_child
def test_pixels_never_change(checkpoint: Path) -> None:
    loopback = Loopback(devices=2)
    mixed = [*place("CPU", modules=["te", "vae"]), *place("Loopback0", "CPU", pin=True, modules=["diffusion"])]
    spread = [
        *place("Loopback1", modules=["te"]),
        *place("Loopback0", "CPU", pin=True, modules=["diffusion"]),
        *place("Loopback1", "CPU", pin=True, modules=["vae"]),
    ]
    expected = draw(checkpoint, ON_CPU)
    assert loopback.books()["streams_created"] == 0, "a device that no module uses is not opened"
    found = {
        "pinned": draw(checkpoint, PINNED),
        "pageable": draw(checkpoint, PAGEABLE),
        "on the device": draw(checkpoint, ON_DEVICE),
        "mixed": draw(checkpoint, mixed),
        "spread": draw(checkpoint, spread),
        "weights on another device": draw(checkpoint, place("Loopback0", "Loopback1")),
        "segments, pinned": draw(checkpoint, PINNED, max_vram=0.01),
        "segments, pageable": draw(checkpoint, PAGEABLE, max_vram=0.01),
        "default": draw(checkpoint),
        "offload flag": draw(checkpoint, offload_params_to_cpu=True),
    }
    assert found == dict.fromkeys(found, expected)
    assert_empty(loopback)


@in_child
def test_pinning_saves_what_the_bandwidths_predict(checkpoint: Path) -> None:
    loopback = Loopback()
    seconds, moved = {}, 0
    for name, wanted in (("pinned", PINNED), ("pageable", PAGEABLE)):
        with Model(checkpoint, wanted) as model:
            loopback.reset()
            model.draw()
            seconds[name] = loopback.clock()["host_seconds"]
            moved = total(model.transfers(), f"to_device_bytes_{name}")
    predicted = moved / loopback.get("pageable_bandwidth") - moved / loopback.get("pinned_bandwidth")
    saved = seconds["pageable"] - seconds["pinned"]
    print(f"predicted {predicted * 1e3:.3f} ms, simulated {saved * 1e3:.3f} ms of {seconds['pageable'] * 1e3:.3f} ms")
    assert saved == pytest.approx(predicted, rel=0.01)


@in_child
def test_mixed_placement_is_reported(checkpoint: Path) -> None:
    loopback = Loopback()
    wanted = [*place("CPU", modules=["te", "vae"]), *place("loopback0", "cpu", pin=True, modules=["diffusion"])]
    with Model(checkpoint, wanted) as model:
        memory = model.memory()
        for name in ("te", "vae"):
            row = memory[name]
            assert (row["runtime_device"], row["params_device"], row["buffer_type"]) == ("CPU", "CPU", "CPU")
            assert (row["pinned"], row["reason"]) == (False, "")
        assert memory["diffusion"]["pinned"]
        assert loopback.books()["host_bytes"] == memory["diffusion"]["bytes"]
        model.draw()
        transfers = model.transfers()
        assert transfers["te"]["copies"] == transfers["vae"]["copies"] == 0
        assert transfers["diffusion"]["to_device_bytes_pinned"] > 0
    assert_empty(loopback)


@in_child
def test_weights_that_live_on_the_device_are_not_pinned(checkpoint: Path) -> None:
    loopback = Loopback()
    with Model(checkpoint, place("Loopback0", "Loopback0", pin=True)) as model:
        memory, books = model.memory(), loopback.books()
        assert (books["host_allocs"], books["host_refusals"]) == (0, 0)
        assert books["device_bytes"] == total(memory, "bytes")
        for row in memory.values():
            assert (row["params_device"], row["buffer_type"], row["pinned"]) == ("Loopback0", "Loopback0", False)
            assert "nothing to pin" in row["reason"]
        loaded = total(model.transfers(), "to_device_bytes_pageable")
        assert loaded == books["weight_upload_pageable_bytes"] > 0, "read from the file by way of plain memory"
        before = loopback.books()["device_bytes"]
        model.draw()
        assert total(model.transfers(), "to_device_bytes_pageable") == loaded, "no second copy"
        assert loopback.books()["device_bytes"] == before
    assert_empty(loopback)


@in_child
def test_memory_does_not_grow_without_placement(checkpoint: Path) -> None:
    """Weights on the device take what they took; pinned ones free the device between uses."""
    loopback = Loopback()
    peaks = {}
    for name, wanted in {"device": ON_DEVICE, "default": (), "pinned": PINNED, "pageable": PAGEABLE}.items():
        loopback.reset()
        draw(checkpoint, wanted)
        peaks[name] = loopback.books()["device_bytes_peak"]
    assert peaks["device"] == peaks["default"]
    assert peaks["pinned"] == peaks["pageable"] < peaks["device"]


@in_child
def test_every_refused_host_allocation_falls_back(checkpoint: Path) -> None:
    loopback = Loopback()
    expected = draw(checkpoint, ON_CPU)
    said = Pageable()
    for silent, (first, count) in itertools.product((0, 1), ((1, 1), (2, 1), (3, 1), (1, -1))):
        loopback.set(host_fallback=silent, refuse_host_alloc=first, refuse_host_alloc_count=count)
        said.lines.clear()
        with Model(checkpoint, PINNED) as model:
            loopback.reset()
            assert model.draw() == expected
            memory, transfers = model.memory(), model.transfers()
            missed = [row for row in memory.values() if not row["pinned"]]
            assert len(missed) == (1 if count == 1 else 3), (silent, first, count)
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
def test_weights_that_do_not_fit_say_so(checkpoint: Path) -> None:
    loopback = Loopback(memory_total=1e6)
    with pytest.raises(sdcpp_py.DeviceMemoryError, match=r"do not fit into the memory of Loopback0.*params_backend"):
        Model(checkpoint, ON_DEVICE)
    assert_empty(loopback)


@in_child
def test_weights_in_several_buffers_are_booked(checkpoint: Path) -> None:
    loopback = Loopback(max_buffer_size=8e6)
    with Model(checkpoint, ON_DEVICE) as model:
        books = loopback.books()
        assert books["device_allocs"] > 3
        assert books["device_bytes"] == total(model.memory(), "bytes")
        assert books["weight_upload_pageable_bytes"] == total(model.transfers(), "to_device_bytes_pageable")
        assert model.draw() == draw(checkpoint, ON_CPU)
    assert_empty(loopback)


@in_child
def test_flags_are_shorthand(checkpoint: Path) -> None:
    loopback = Loopback()
    cases: list[tuple[dict[str, bool], dict[str, tuple[str, str]]]] = [
        ({}, dict.fromkeys(MODULES, ("Loopback0", "Loopback0"))),
        ({"offload_params_to_cpu": True}, dict.fromkeys(MODULES, ("Loopback0", "CPU"))),
        ({"keep_clip_on_cpu": True}, {**dict.fromkeys(MODULES, ("Loopback0", "Loopback0")), "te": ("CPU", "CPU")}),
        (
            {"keep_vae_on_cpu": True, "offload_params_to_cpu": True},
            {**dict.fromkeys(MODULES, ("Loopback0", "CPU")), "vae": ("CPU", "CPU")},
        ),
    ]
    for flags, expected in cases:
        with Model(checkpoint, **flags) as model:
            memory = model.memory()
            assert {name: (row["runtime_device"], row["params_device"]) for name, row in memory.items()} == expected
            assert not any(row["pinned"] or row["reason"] for row in memory.values())
        assert loopback.books()["host_allocs"] == 0, "as the engine does, the flags do not pin"
    # A placement replaces what the flags say of its module.
    with Model(checkpoint, place("CPU", modules=["te"]), offload_params_to_cpu=True) as model:
        assert model.memory()["te"]["runtime_device"] == "CPU"
        assert model.memory()["vae"]["params_device"] == "CPU"
        assert model.memory()["vae"]["runtime_device"] == "Loopback0"
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


@in_child
def test_survey_says_what_loading_takes(checkpoint: Path) -> None:
    loopback = Loopback()
    options = {"model_path": bytes(checkpoint), "n_threads": 1}
    surveyed = engine.weights_survey(options)
    assert set(surveyed) == set(MODULES)
    books = loopback.books()
    assert (books["device_allocs"], books["host_allocs"], books["streams_created"]) == (0, 0, 0)
    with Model(checkpoint, ON_CPU) as model:
        memory = model.memory()
        for name, bytes_wanted in surveyed.items():
            assert memory[name]["bytes"] == bytes_wanted
    with Model(checkpoint, PINNED) as model:
        for name, row in model.memory().items():
            assert 0 <= row["bytes"] - surveyed[name] < 128 * row["tensors"], "only the alignment is more"
    with_encoder = engine.weights_survey({**options, "vae_decode_only": False})
    without = engine.weights_survey({**options, "vae_decode_only": True})
    assert with_encoder["vae"] > without["vae"]
    smaller = engine.weights_survey({**options, "wtype": "q8_0"})
    assert smaller["diffusion"] < surveyed["diffusion"]
    with pytest.raises(sdcpp_py.ModelError):
        engine.weights_survey({"model_path": b"/nonexistent.safetensors"})


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


@in_child
def test_every_part_is_placed(checkpoint: Path, parts: Path) -> None:
    loopback = Loopback(devices=2)
    names = ("diffusion", "te", "vae", "controlnet", "upscaler")
    options = {"control_net_path": bytes(parts / "control.safetensors"), "vae_decode_only": False}
    picture: dict[str, Any] = {
        "control": np.full((64, 64, 3), 200, np.uint8),
        "hires": {
            "enabled": True,
            "upscaler": "Model",
            "model_path": bytes(parts / "upscaler.safetensors"),
            "scale": 2.0,
            "steps": 1,
            "denoising_strength": 1.0,
        },
    }
    surveyed = engine.weights_survey({"model_path": bytes(checkpoint), **options})
    assert set(surveyed) == {"diffusion", "te", "vae", "controlnet"}
    expected = None
    for wanted in (
        place("CPU", modules=names),
        place("Loopback0", "CPU", True, names),
        place("Loopback0", "CPU", False, names),
        place("Loopback0", modules=names),
        [*place("Loopback0", "CPU", True, names[:3]), *place("Loopback1", "CPU", True, names[3:])],
    ):
        loopback.reset()
        with Model(checkpoint, wanted, **options) as model:
            found = model.draw(**picture)
            expected = expected or found
            assert found == expected
            memory, transfers = model.memory(), model.transfers()
            assert set(memory) == set(names)
            for place_wanted in wanted:
                row, moved = memory[place_wanted["module"]], transfers[place_wanted["module"]]
                assert row["runtime_device"] == place_wanted["runtime_device"]
                assert row["params_device"] == (place_wanted["params_device"] or place_wanted["runtime_device"])
                if place_wanted["pin"]:
                    assert row["module"] == "upscaler" or row["pinned"], "the upscaler is gone by now"
                    assert moved["to_device_bytes_pinned"] > moved["to_device_bytes_pageable"] == 0
            if wanted[0]["pin"]:
                assert loopback.books()["weight_upload_pageable_bytes"] == 0
        assert_empty(loopback)


@in_child
def test_tae_is_placed_with_the_vae(checkpoint: Path, parts: Path) -> None:
    loopback = Loopback()
    for preview in (False, True):
        options = {"taesd_path": bytes(parts / "tae.safetensors"), "tae_preview_only": preview}
        expected = draw(checkpoint, ON_CPU, **options)
        with Model(checkpoint, PINNED, **options) as model:
            memory = model.memory()
            assert set(memory) == set(MODULES)
            assert memory["vae"]["pinned"]
            surveyed = engine.weights_survey({"model_path": bytes(checkpoint), **options})
            assert 0 <= memory["vae"]["bytes"] - surveyed["vae"] < 128 * memory["vae"]["tensors"]
            assert loopback.books()["host_bytes"] == total(memory, "bytes")
            assert model.draw() == expected
    assert_empty(loopback)


def cycle(checkpoint: Path, count: int) -> None:
    loopback = Loopback(devices=2)
    places = [PINNED, ON_DEVICE, PAGEABLE, [*place("Loopback1", modules=["te"]), *PINNED[::2]]]
    expected = draw(checkpoint, ON_CPU)
    before = 0
    for number, wanted in zip(range(count), itertools.cycle(places), strict=False):
        if number == count // 4:
            before = resident_bytes()
        assert draw(checkpoint, wanted) == expected
        assert_empty(loopback)
    grown = resident_bytes() - before
    print(f"{count} cycles: {grown / 2**20:+.1f} MiB after the first quarter")
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # which keeps freed memory back
        assert grown < 8 << 20


@in_child
def test_cycles_leave_nothing(checkpoint: Path) -> None:
    cycle(checkpoint, 20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@in_child
def test_many_cycles_leave_nothing(checkpoint: Path) -> None:
    cycle(checkpoint, 200)
