from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcpp_py import (
    ArgumentError,
    Cache,
    Hires,
    Lora,
    ModelError,
    PhotoMaker,
    SkipLayerGuidance,
    Tiling,
)
from sdcpp_py.modes import TXT2IMG, Request, make_request


def txt2img(prompt: str, **options: Any) -> Request:
    return make_request(TXT2IMG, {"prompt": prompt, **options})


def test_defaults_are_the_engines() -> None:
    request = txt2img("a cat", seed=3, batch_count=2)
    assert request.size == "512x512"
    assert request.seeds == [3, 4]
    assert request.used["steps"] == 20
    assert request.settings == {
        "prompt": "a cat",
        "negative_prompt": "",
        "seed": 3,
        "batch_count": 2,
        "loras": [],
    }


def test_defaults_of_a_model_stand_in_for_none() -> None:
    own = {"width": 128, "steps": 5}
    request = make_request(TXT2IMG, {"prompt": "a", "width": None, "steps": 7}, own)
    assert (request.settings["width"], request.settings["sample_params"]) == (128, {"sample_steps": 7})


def test_a_seed_is_drawn() -> None:
    drawn = {txt2img("a").seeds[0] for _ in range(4)}
    assert len(drawn) == 4
    assert all(0 <= seed < 2**32 for seed in drawn)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("width", 0, "width must be from 8 to 16384, not 0"),
        ("width", -8, "width must be from 8"),
        ("width", 100, "multiple of 8"),
        ("height", 100_000, "height must be from 8 to 16384"),
        ("height", "512", "height must be an integer"),
        ("steps", 0, "steps must be from 1"),
        ("cfg_scale", math.nan, "cfg_scale must be a finite number"),
        ("cfg_scale", math.inf, "cfg_scale must be a finite number"),
        ("sampler", "eular", "sampler 'eular' is unknown; valid: euler, euler_a"),
        ("scheduler", "karas", "scheduler 'karas' is unknown; valid: discrete, karras"),
        ("batch_count", 0, "batch_count must be from 1"),
        ("seed", -2, "seed must be from -1"),
        ("seed", 2**63, "seed must be from -1"),
        ("seed", 1.5, "seed must be an integer"),
        ("clip_skip", 1000, "clip_skip must be"),
        ("eta", -1, "eta must be"),
        ("eta", 11, "eta must be a finite number from 0 to 10"),
        ("sigmas", [1.0], "at least two"),
        ("sigmas", [0.0, 1.0], "must descend"),
        ("sigmas", [math.nan, 0.0], r"sigmas\[0\] must be a finite number"),
        ("negative_prompt", "a\0b", "NUL"),
        ("cache", "eazycache", "valid: easycache, ucache"),
        ("hires", Hires(upscaler="bicubic"), "valid: .*Latent"),
        ("control_strength", 1.0, "needs a control_image"),
        ("control_image", "cat.png", "control_image cat.png: not a picture, there is no such file"),
        ("vae_tiling", None, "^vae_tiling must be True, False or a Tiling, not None"),
        ("hires", 2.0, "^hires must be a Hires, not 2.0"),
        ("hires", Hires(upscaler="None"), "^hires.upscaler 'None' is unknown; valid: Latent, .*Lanczos"),
        ("loras", 5, "^loras must be Lora objects, paths or a mapping"),
        ("progress", 5, "^progress must be a function, True or False, not 5"),
        ("cfg_scale", 10**400, "^cfg_scale must be a finite number from -100 to 100, not inf"),
        ("steps", 10**5000, "^steps must be from 1 to 10000, not a number of 16610 bits"),
        ("cfg_scale", "7", "^cfg_scale must be a number, not '7'"),
        ("batch_count", True, "^batch_count must be an integer, not True"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_values(option: str, value: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        txt2img("a cat", **{option: value})
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_the_last_seed_must_fit() -> None:
    assert txt2img("a", seed=2**63 - 1).seeds == [2**63 - 1]
    with pytest.raises(ArgumentError, match="seed must be"):
        txt2img("a", seed=2**63 - 1, batch_count=2)


def test_options_become_engine_fields(tmp_path: Path, lora: Path) -> None:
    request = txt2img(
        "a cat",
        negative_prompt="a dog",
        sigmas=[3.0, 1.0, 0.0],
        vae_tiling=Tiling(tile_size_x=16),
        cache=Cache("ucache", reuse_threshold=0.5),
        skip_layer_guidance=SkipLayerGuidance([1, 2], 2.5),
        hires=Hires(upscaler="Latent", scale=2.0),
        loras=[Lora(lora, 0.5)],
        control_image=Image.new("RGB", (16, 8)),
        control_strength=0.5,
        photo_maker=PhotoMaker([Image.new("L", (4, 4))], style_strength=10.0),
    )
    settings = request.settings
    assert settings["sample_params"]["sample_steps"] == 2
    assert settings["sample_params"]["custom_sigmas"] == (3.0, 1.0, 0.0)
    assert settings["vae_tiling_params"] == {"enabled": True, "tile_size_x": 16}
    assert settings["cache"]["reuse_threshold"] == 0.5
    assert isinstance(settings["cache"]["mode"], int)
    assert settings["sample_params"]["guidance"]["slg"] == {"layers": (1, 2), "scale": 2.5}
    assert settings["hires"] == {"enabled": True, "upscaler": "Latent", "scale": 2.0}
    assert settings["loras"] == [{"path": str(lora).encode(), "multiplier": 0.5, "is_high_noise": False}]
    assert settings["control_image"].shape == (8, 16, 3)
    assert settings["pm_params"]["id_images"][0].shape == (4, 4, 3)
    assert settings["pm_params"]["style_strength"] == 10.0


def test_what_is_used_is_noted(lora: Path) -> None:
    request = txt2img(
        "a cat",
        seed=1,
        steps=3,
        cache=Cache("cache-dit", Fn_compute_blocks=4),
        hires=Hires(target_width=64),
        loras={lora: 0.5},
        control_image=Image.new("RGB", (16, 8)),
        photo_maker=PhotoMaker([Image.new("L", (4, 4))]),
        skip_layer_guidance=SkipLayerGuidance([1], 1.0),
        vae_tiling=True,
        shifted_timestep=250,
        image_cfg_scale=1.5,
    )
    assert request.used == {
        "prompt": "a cat",
        "steps": 3,
        "cfg_scale": 7.0,
        "seed": 1,
        "width": 512,
        "height": 512,
        "batch_count": 1,
        "cache": {"mode": "cache_dit", "Fn_compute_blocks": 4},
        "loras": [{"path": "tiny-lora", "multiplier": 0.5, "is_high_noise": False}],
        "image_cfg_scale": 1.5,
        "skip_layer_guidance": {"layers": [1], "scale": 1.0, "layer_start": 0.01, "layer_end": 0.2},
        "shifted_timestep": 250,
        "vae_tiling": {},
        "hires": {
            "upscaler": "Latent",
            "target_width": 64,
            "target_height": 64,
            "steps": 3,
            "denoising_strength": 0.7,
        },
        "control_strength": 0.9,
        "photo_maker": {"style_strength": 20.0},
    }


def test_sigmas_say_the_steps_and_leave_no_schedule() -> None:
    used = txt2img("a", sigmas=[3, 1, 0], scheduler="karras", seed=1).used
    assert (used["steps"], used["sigmas"]) == (2, [3.0, 1.0, 0.0])
    assert "scheduler" not in used


def test_missing_lora(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"LoRA: .*none.safetensors does not exist"):
        txt2img("a", loras=[tmp_path / "none.safetensors"])
