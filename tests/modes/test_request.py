from __future__ import annotations

import inspect
import math
from pathlib import Path

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
    StableDiffusion,
    Tiling,
)
from sdcpp_py.request import TXT2IMG_OPTIONS, Request


def test_txt2img_takes_the_same_options() -> None:
    public = inspect.signature(StableDiffusion.txt2img).parameters
    assert set(public) - {"self", "prompt", "progress"} == TXT2IMG_OPTIONS
    own = inspect.signature(Request.txt2img).parameters
    for name in TXT2IMG_OPTIONS:
        assert public[name].default == own[name].default, name
        assert public[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_defaults_are_the_engines() -> None:
    request = Request.txt2img("a cat", seed=3, batch_count=2)
    assert request.size == "512x512"
    assert request.seeds == [3, 4]
    assert request.settings["sample_params"]["sample_steps"] == 20
    assert "clip_skip" not in request.settings
    assert "eta" not in request.settings["sample_params"]


def test_a_seed_is_drawn() -> None:
    drawn = {Request.txt2img("a").seeds[0] for _ in range(4)}
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
        ("sigmas", [1.0], "at least two"),
        ("sigmas", [0.0, 1.0], "must descend"),
        ("sigmas", [math.nan, 0.0], "sigma must be a finite number"),
        ("negative_prompt", "a\0b", "NUL"),
        ("cache", "eazycache", "valid: easycache, ucache"),
        ("hires", Hires(upscaler="bicubic"), "valid: .*Latent"),
        ("control_strength", 1.0, "needs a control_image"),
        ("control_image", "cat.png", "control_image must be a Pillow image"),
    ],
)
def test_bad_values(option: str, value: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        Request.txt2img("a cat", **{option: value})  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_the_last_seed_must_fit() -> None:
    assert Request.txt2img("a", seed=2**63 - 1).seeds == [2**63 - 1]
    with pytest.raises(ArgumentError, match="seed must be"):
        Request.txt2img("a", seed=2**63 - 1, batch_count=2)


def test_options_become_engine_fields(tmp_path: Path, checkpoint: Path) -> None:
    request = Request.txt2img(
        "a cat",
        negative_prompt="a dog",
        sigmas=[3.0, 1.0, 0.0],
        vae_tiling=Tiling(tile_size_x=16),
        cache=Cache("ucache", reuse_threshold=0.5),
        skip_layer_guidance=SkipLayerGuidance([1, 2], 2.5),
        hires=Hires(upscaler="Latent", scale=2.0),
        loras=[Lora(checkpoint, 0.5)],
        control_image=Image.new("RGB", (16, 8)),
        control_strength=0.5,
        photo_maker=PhotoMaker([Image.new("L", (4, 4))], style_strength=10.0),
    )
    settings = request.settings
    assert settings["sample_params"]["sample_steps"] == 2
    assert request.sigmas == [3.0, 1.0, 0.0]
    assert settings["vae_tiling_params"] == {"enabled": True, "tile_size_x": 16}
    assert settings["cache"]["reuse_threshold"] == 0.5
    assert isinstance(settings["cache"]["mode"], int)
    assert settings["sample_params"]["guidance"]["slg"] == {"scale": 2.5}
    assert list(request.skip_layers) == [1, 2]
    assert settings["hires"] == {"enabled": True, "upscaler": "Latent", "scale": 2.0}
    assert request.loras == [{"path": str(checkpoint).encode(), "multiplier": 0.5, "is_high_noise": False}]
    assert request.control_image.shape == (8, 16, 3)
    assert request.id_images[0].shape == (4, 4, 3)
    assert request.parameters["Lora"] == "tiny-sd1: 0.5"
    assert request.parameters["Cache"] == "ucache"


def test_missing_lora(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"LoRA: .*none.safetensors does not exist"):
        Request.txt2img("a", loras=[tmp_path / "none.safetensors"])
