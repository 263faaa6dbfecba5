"""What pictures take is told before anything is loaded, and is what they take then."""

from __future__ import annotations

import pytest

from sdcpp_py import ArgumentError, ModelError, StableDiffusion, engine, models
from sdcpp_py.engine.fields import IMAGE, VIDEO
from support.children import in_child
from support.loopback import Loopback

GIVEN = {"model_path": bytes(models.EMBEDDED), "vae_decode_only": True}
PICTURE = {"prompt": "a cat", "width": 64, "height": 64, "sample_params": {"sample_steps": 2}}


@in_child
def test_a_survey_tells_what_drawing_takes() -> None:
    loopback = Loopback()
    loopback.reset()
    found = {row["module"]: row for row in engine.picture_survey(GIVEN, IMAGE, PICTURE, "Loopback0")}
    books = loopback.books()
    assert books["device_allocs"] == books["host_allocs"] == books["violations"] == 0
    with StableDiffusion(runtime_backend="loopback0", params_backend="cpu", stream_layers=True, threads=1) as sd:
        sd.txt2img("a cat", width=64, height=64, steps=2, cfg_scale=7.0)
        streams = {row.module: row for row in sd.transfer_report().streams}
    assert found.keys() == streams.keys() == {"te", "diffusion", "vae"}
    for module, row in found.items():
        drawn = streams[module]
        assert row["network"] == drawn.runner
        assert row["weight_bytes"] == drawn.weight_bytes
        assert row["compute_bytes"] == drawn.compute_bytes
        assert row["graphs"] == drawn.passes
        assert 0 < row["largest_segment_bytes"] <= row["weight_bytes"]
        assert row["flops"] > 0
        assert row["moved_bytes"] > 0
    rate = engine.bus_rate("Loopback0")
    assert rate is not None
    assert 1e7 < rate < 1e13
    assert engine.bus_rate("CPU") is None


def test_sizes_and_steps_count() -> None:
    def survey(**more: object) -> dict[str, dict[str, object]]:
        return {row["module"]: row for row in engine.picture_survey(GIVEN, IMAGE, {**PICTURE, **more})}

    small, large = survey(), survey(width=128, height=128)
    assert large["vae"]["flops"] == pytest.approx(4 * small["vae"]["flops"], rel=0.2)  # type: ignore[operator]
    assert large["diffusion"]["weight_bytes"] == small["diffusion"]["weight_bytes"]
    more = survey(sample_params={"sample_steps": 3})
    assert more["diffusion"]["graphs"] == small["diffusion"]["graphs"] * 3 / 2  # type: ignore[operator]
    tiled = survey(width=320, height=320, vae_tiling_params={"enabled": True, "tile_size_x": 16, "tile_size_y": 16})
    whole = survey(width=320, height=320)
    assert tiled["vae"]["compute_bytes"] < whole["vae"]["compute_bytes"] / 2  # type: ignore[operator]
    assert tiled["vae"]["graphs"] > 1  # type: ignore[operator]


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ArgumentError, match="this model draws images only"):
        engine.picture_survey(GIVEN, VIDEO, {"prompt": "waves", "video_frames": 5})
    with pytest.raises(ModelError):
        engine.picture_survey({**GIVEN, "model_path": b"missing.gguf"}, IMAGE, PICTURE)
    with pytest.raises(ModelError, match="no device Vulkan7"):
        engine.picture_survey(GIVEN, IMAGE, PICTURE, "Vulkan7")
