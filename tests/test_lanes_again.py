"""Graphs that are computed again, with other inputs: the pixels of graphs that are built for each step."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import StableDiffusion
from support.checkpoints import write_checkpoint
from support.children import in_child
from support.loopback import Loopback
from support.placed_model import Model
from support.streaming import DIFFUSION, PROMPTS, steps
from test_lanes import drawn

SMALL: dict[str, Any] = {"width": 64, "height": 64, "seed": 1, "steps": 4, "cfg_scale": 1.0}
"""The second graph shows that the first one depends on no values; from the third one on none is built."""
SAID = "the next passes have the graph of the last ones"
"""By the engine's log when that is so."""
LOOK = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
DRAW: dict[str, Callable[[StableDiffusion], Any]] = {
    "sd1": lambda sd: sd.txt2img("a cat", **{**SMALL, "cfg_scale": 5.0, "negative_prompt": "dogs"}),
    "sdxl": lambda sd: sd.img2img("a cat", LOOK, **SMALL),
    "sd3": lambda sd: sd.txt2img("a cat", **SMALL),
    "flux": lambda sd: sd.edit("a cat", [LOOK], **SMALL),
    "zimage": lambda sd: sd.txt2img("a cat", **{**SMALL, "batch_count": 2}),
    "qwen_image": lambda sd: sd.txt2img("a cat", **SMALL),
    "wan_t2v": lambda sd: sd.txt2vid("a cat", **{**SMALL, "frames": 5}),
}


@pytest.mark.parametrize("family", DRAW)
def test_each_family_draws_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "sdcpp_py.engine")
    with StableDiffusion(**write_checkpoint(family, tmp_path / "model.safetensors", tiny=True), threads=1) as sd:
        again = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in DRAW[family](sd)]
        assert SAID in caplog.text
        caplog.clear()
        monkeypatch.setenv("SDCPP_BUILD_EACH_GRAPH", "1")
        assert [hashlib.sha256(picture.tobytes()).hexdigest() for picture in DRAW[family](sd)] == again
        assert SAID not in caplog.text


@in_child
def test_lanes_that_come_again(checkpoint: Path, lora: Path) -> None:
    """Streamed, with other lanes for what is left, a LoRA at run time, a cancel, and passes that differ in between."""
    loopback = Loopback()
    library = sdcpp_py.engine.library()[1]
    cases: dict[str, dict[str, Any]] = {
        "five pictures": {"batch_count": 5},
        "noise of each step": {**steps(4, 1.0), "batch_count": 2},
    }
    cases["noise of each step"]["sample_params"] |= {"sample_method": library.EULER_A_SAMPLE_METHOD, "eta": 1.0}

    with Model(checkpoint, DIFFUSION, max_vram=0.004, lora_apply_mode=library.LORA_APPLY_AT_RUNTIME) as model:

        def draw(**given: Any) -> list[str]:
            return drawn(model, (lora, 0.7), **{**steps(3), **PROMPTS, **given})

        os.environ["SDCPP_BUILD_EACH_GRAPH"] = "1"
        expected = {name: draw(**given) for name, given in cases.items()}
        del os.environ["SDCPP_BUILD_EACH_GRAPH"]
        for name, given in cases.items():
            loopback.reset()
            assert draw(**given) == expected[name], name
            assert loopback.books()["violations"] == 0
        with pytest.raises(sdcpp_py.CancelledError):
            draw(batch_count=5, progress=lambda step: model.context.cancel() if step.step == 2 else None)
        assert draw(**cases["five pictures"]) == expected["five pictures"]


@in_child
def test_passes_that_differ_keep_a_graph_each(tmp_path: Path) -> None:
    """What leaves layers out takes turns with what does not: each has its graph, and both the weights that stay."""
    loopback = Loopback()
    model = write_checkpoint("flux", tmp_path / "model.safetensors", tiny=True)["model"]
    skipping = sdcpp_py.SkipLayerGuidance(layers=[1], scale=2.0, layer_start=0.0, layer_end=1.0)
    given = {**SMALL, "cfg_scale": 5.0, "skip_layer_guidance": skipping}
    away = {"runtime_backend": "te=cpu,vae=cpu,all=loopback0", "params_backend": "cpu", "stream_layers": True}
    with StableDiffusion(model, threads=1, runtime_backend="cpu") as sd:
        expected = hashlib.sha256(sd.txt2img("a cat", **given)[0].tobytes()).hexdigest()
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("sdcpp_py.engine").addHandler(handler)
    logging.getLogger("sdcpp_py.engine").setLevel("DEBUG")
    for lanes, graphs in ((1, 2), (2, 2), (3, 1)):
        os.environ["SDCPP_LANES"] = str(lanes)
        with StableDiffusion(model, threads=1, max_vram=0.0155, **away) as sd:
            copied = {}
            for steps_ in (1, 4, 8):
                loopback.reset()
                said.clear()
                picture = sd.txt2img("a cat", **{**given, "steps": steps_})[0]
                copied[steps_] = loopback.books()["upload_pinned_bytes"]  # inputs are pageable
                assert loopback.books()["violations"] == 0
                assert steps_ != 4 or hashlib.sha256(picture.tobytes()).hexdigest() == expected
            assert sum(SAID in line for line in said) == graphs
            (row,) = (row for row in sd.transfer_report().streams if row.module == "diffusion")
            assert (row.lanes, row.graphs) == (lanes, -(-3 // lanes) * 8)
            # Steps copy what is streamed and nothing else; how much is copied ahead of the last one is the host's pace.
            assert abs(copied[8] - copied[4] - row.copied_bytes // 2) <= row.streamed_bytes
            assert row.streamed_bytes > 0
            assert loopback.books()["device_bytes_peak"] <= row.budget_bytes


@in_child
def test_two_passes_at_the_same_time_come_again(checkpoint: Path) -> None:
    """Of a resident model's guided steps: each pass of a step finds its graph, beside the other one."""
    loopback = Loopback()
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("sdcpp_py.engine")
    log.addHandler(handler)
    log.setLevel("DEBUG")
    given = {**SMALL, "steps": 6, "cfg_scale": 5.0, "negative_prompt": "dogs"}
    with StableDiffusion(checkpoint, runtime_backend="loopback0", threads=1) as sd:
        again = hashlib.sha256(sd.txt2img("a cat", **given)[0].tobytes()).hexdigest()
        found = sum(SAID in line for line in said)
        assert found == 1  # of one graph, which served to the end
        # The device need not look whether it is the same, once both have been computed at their places.
        books = loopback.books()
        assert books["same_graphs"] >= 4
        assert books["same_graphs"] % 2 == books["violations"] == 0
        loopback.reset()
        os.environ["SDCPP_BUILD_EACH_GRAPH"] = "1"
        drawn_anew = hashlib.sha256(sd.txt2img("a cat", **given)[0].tobytes()).hexdigest()
        assert loopback.books()["same_graphs"] == 0
    assert drawn_anew == again
