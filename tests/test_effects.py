"""Every option either changes the picture or is refused: nothing that is asked for is silently not done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdcpp_py import ArgumentError, Cache, Hires, SkipLayerGuidance, StableDiffusion, Tiling
from sdcpp_py.modes import TXT2IMG
from support.checkpoints import write_checkpoint

BASE: dict[str, Any] = {
    "prompt": "a cat", "width": 64, "height": 64, "steps": 2, "seed": 1, "cfg_scale": 3.0, "negative_prompt": "dog",
}  # fmt: skip
# Option -> what is asked, beside what; each changes the picture of a model that has it.
ASKED: dict[str, dict[str, Any]] = {
    "guidance": {"guidance": 9.0},
    "flow_shift": {"flow_shift": 7.0},
    "shifted_timestep": {"shifted_timestep": 250},
    "image_cfg_scale": {"image_cfg_scale": 5.0},
    "skip_layer_guidance": {"skip_layer_guidance": SkipLayerGuidance([0], 3.0, 0.0, 1.0)},
    "eta": {"eta": 0.5, "sampler": "euler_a"},
    "eta, no noise": {"eta": 0.5, "sampler": "euler"},
    "clip_skip": {"clip_skip": 2},
    "clip_skip, none": {"clip_skip": 1},
    "ucache": {"cache": Cache("ucache", 1e6, 0.0, 1.0), "steps": 5},
    "easycache": {"cache": Cache("easycache", 1e6, 0.0, 1.0), "steps": 5},
    "dbcache": {
        "cache": Cache("dbcache", residual_diff_threshold=1e6, max_warmup_steps=0, Fn_compute_blocks=0), "steps": 5,
    },
    "spectrum": {"cache": Cache("spectrum", spectrum_warmup_steps=1, spectrum_stop_percent=1.0), "steps": 5},
    "scheduler": {"scheduler": "karras", "steps": 4},
    "sampler": {"sampler": "heun"},
    "sigmas": {"sigmas": [10.0, 3.0, 0.0]},
    "cfg_scale": {"cfg_scale": 6.0},
    "negative_prompt": {"negative_prompt": "bird"},
    "vae_tiling": {"vae_tiling": Tiling(4, 4)},
}  # fmt: skip
REFUSED = {
    "sd1": {"guidance", "flow_shift", "shifted_timestep", "image_cfg_scale", "skip_layer_guidance", "easycache",
            "dbcache", "eta, no noise"},
    "sdxl": {"guidance", "flow_shift", "image_cfg_scale", "skip_layer_guidance", "easycache", "dbcache",
             "eta, no noise"},
    "sd3": {"guidance", "shifted_timestep", "image_cfg_scale", "ucache", "eta, no noise"},
    "flux": {"shifted_timestep", "image_cfg_scale", "ucache", "clip_skip", "eta, no noise"},
    "zimage": {"guidance", "shifted_timestep", "image_cfg_scale", "skip_layer_guidance", "ucache", "clip_skip",
               "eta, no noise"},
    "qwen_image": {"guidance", "shifted_timestep", "image_cfg_scale", "skip_layer_guidance", "ucache", "clip_skip",
                   "eta, no noise"},
}  # fmt: skip
OF_ALL = {"scheduler", "sampler", "sigmas", "cfg_scale", "negative_prompt", "spectrum", "eta", "clip_skip, none",
          "vae_tiling"}  # fmt: skip
"""What is no matter of families, so that one is enough."""
ALREADY = {"sd1": {"clip_skip, none"}, "sdxl": {"clip_skip"}, "sd3": {"clip_skip"}}
"""What is asked for there is what the model does anyway."""
for refused in REFUSED.values():
    if "clip_skip" in refused:
        refused.add("clip_skip, none")


CASES = [(title, name) for title in REFUSED for name in ASKED if title == "sd1" or name not in OF_ALL]


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tiny model of each family, with the pixels that it draws when nothing is asked."""
    path = tmp_path_factory.mktemp("families") / f"{request.param}.safetensors"
    write_checkpoint(request.param, path, tiny=True)
    with StableDiffusion(path) as model:
        yield request.param, model, {}


def pixels(model: StableDiffusion, **options: Any) -> np.ndarray[Any, Any]:
    return np.asarray(model.txt2img(**{**BASE, **options})[0])


@pytest.mark.parametrize(("family", "name"), CASES, indirect=["family"])
def test_an_option_shows_or_is_refused(name: str, family: Any) -> None:
    title, model, plain = family
    asked = ASKED[name]
    if name in ALREADY.get(title, ()):
        assert (pixels(model, **asked) == pixels(model)).all()
        return
    if name in REFUSED[title]:
        with pytest.raises(ArgumentError, match="has no effect"):
            model.txt2img(**{**BASE, **asked})
        return
    beside = {key: asked[key] for key in ("steps", "sampler") if key in asked and name != key}
    key = tuple(sorted(beside.items()))
    if key not in plain:
        plain[key] = pixels(model, **beside)
    changed = pixels(model, **{**asked, **({"steps": None} if "sigmas" in asked else {})})
    assert (changed != plain[key]).any(), "asked, and silently not done"


def test_each_option_has_a_row_or_a_reason() -> None:
    reasons = {
        "prompt", "seed", "width", "height", "steps", "batch_count",  # whose effect every picture shows
        "cache",  # by its modes
        "loras", "hires", "control_image", "control_strength", "canny", "canny_low", "canny_high",
        "resize_mode", "photo_maker", "progress", "preview", "preview_interval",  # have tests
    }  # fmt: skip
    assert set(TXT2IMG.declared) - reasons <= set(ASKED)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tiling(tile_size_x=32, rel_size_x=0.5), "tile_size_x has no effect with rel_size_x"),
        (lambda: Cache("dbcache", scm_policy_dynamic=True), "scm_policy_dynamic has no effect without scm_mask"),
        (lambda: Hires("nearest", upscale_tile_size=64), "upscale_tile_size has no effect without a model"),
    ],
)
def test_fields_that_overrule_each_other(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": [3.0, 1.0, 0.0], "steps": 7}, "steps has no effect with sigmas"),
        ({"skip_layer_guidance": SkipLayerGuidance([0], 2.0)}, "skip_layer_guidance has no effect"),
    ],
)
def test_options_that_overrule_each_other(options: dict[str, Any], message: str, sd: StableDiffusion) -> None:
    with pytest.raises(ArgumentError, match=message):
        sd.txt2img("a", width=64, height=64, **options)


def test_options_of_loading_show(checkpoint: Path, sd: StableDiffusion) -> None:
    """Each of them changes the picture, and is in it; what samplers' noise is made by only where they add some."""
    plain = {sampler: pixels(sd, sampler=sampler) for sampler in ("euler", "euler_a")}
    for name, value, shows, text in (
        ("circular_x", True, {"euler", "euler_a"}, "Tile horizontally: True"),
        ("circular_y", True, {"euler", "euler_a"}, "Tile vertically: True"),
        ("rng", "std_default", {"euler", "euler_a"}, "RNG: "),
        ("sampler_rng", "std_default", {"euler_a"}, "Sampler RNG: "),
        ("weight_type", "q8_0", {"euler", "euler_a"}, ""),
    ):
        with StableDiffusion(checkpoint, **{name: value}) as model:
            for sampler, before in plain.items():
                (image,) = model.txt2img(**{**BASE, "sampler": sampler})
                assert (np.asarray(image) != before).any() == (sampler in shows), (name, sampler)
                assert (text in image.info["parameters"]) == (sampler in shows), (name, sampler)


@pytest.mark.parametrize(
    "options",
    [
        {"chroma_use_t5_mask": True}, {"chroma_use_dit_mask": False}, {"chroma_t5_mask_pad": 2},
        {"qwen_image_zero_cond_t": True}, {"force_sdxl_vae_conv_scale": True}, {"tae_preview_only": True},
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_options_of_other_families(options: dict[str, Any], checkpoint: Path) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(options))} has no effect: it needs "):
        StableDiffusion(checkpoint, **options)


def test_what_had_no_effect_is_not_in_the_picture(sd: StableDiffusion) -> None:
    image = sd.txt2img("a", width=64, height=64, steps=1, seed=1, cfg_scale=1.0, negative_prompt="dog")[0]
    assert "Negative prompt" not in image.info["parameters"]
    assert "dog" in sd.txt2img("a", width=64, height=64, steps=1, seed=1, negative_prompt="dog")[0].info["parameters"]
