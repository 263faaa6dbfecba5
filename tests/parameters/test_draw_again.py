"""What a picture carries draws it again: the same engine fields from every option, and the same pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import sdcpp_py
from sdcpp_py import ArgumentError, Cache, Hires, Lora, StableDiffusion, Tiling, cli, read_parameters
from sdcpp_py.engine.fields import defaults
from sdcpp_py.metadata import MODE, VERSION, parameters_text
from sdcpp_py.modes import DRAWING, Mode, Request, make_request
from sdcpp_py.options import Option, declared
from sdcpp_py.options.group import Grouped
from sdcpp_py.options.kinds import (
    Callback,
    Choice,
    File,
    Integer,
    Items,
    Number,
    Picture,
    Prompt,
    Switch,
)
from sdcpp_py.options.loras import Lora as LoraGroup
from sdcpp_py.parameters.plain_text import read_text

PICTURE = Image.new("RGB", (64, 64), "teal")
MASK = Image.new("L", (64, 64)).point(lambda _: 0)
MASK.paste(255, (8, 8, 40, 40))
PICTURES: dict[str, Any] = {"image": PICTURE, "mask": MASK, "images": [PICTURE], "control_image": PICTURE}
NAMES = {"resize_mode": ["error", "crop", "pad", "resize"], "scm_mask": ["0,1,1", "1"]}
LEFT_OUT = ("loras", "photo_maker", "preview", "batch_count", "width", "height")


def values(option: Option) -> st.SearchStrategy[Any] | None:
    """Return values that an option takes; None for one whose values are no matter of text."""
    kind = option.kind
    low, high = max(option.low, -1e4), min(option.high, 1e4)
    if option.name in NAMES:
        return st.sampled_from(NAMES[option.name])
    if isinstance(kind, (Picture, Callback, File)):
        return None
    if isinstance(kind, Grouped):
        fields = {name: found for name, each in declared(kind.owner).items() if (found := values(each)) is not None}
        needed = {
            name: fields.pop(name) for name in list(fields) if declared(kind.owner)[name].default is dataclasses.MISSING
        }
        return st.fixed_dictionaries(needed, optional=fields).map(lambda given: (kind.owner, given))
    if isinstance(kind, Choice):
        return st.sampled_from([name for name in kind.names(option) if name != "Model"])
    if isinstance(kind, Prompt):
        return st.text(st.characters(codec="utf-8", exclude_characters="\0<"), max_size=40) | st.sampled_from(
            ["a\nNegative prompt: b", "Negative prompt: c", "a\nSteps: 3, Seed: 4", " a ", "\n", 'x: "y", z', "Seed: 1"]
        )
    if isinstance(kind, Items):
        each = st.integers(0, 30) if isinstance(kind.of, Integer) else st.floats(0, 100)
        return st.lists(each, min_size=1, max_size=4)
    if isinstance(kind, Switch):
        return st.booleans()
    if isinstance(kind, Integer):
        return st.integers(int(-(-low // option.multiple)), int(high // option.multiple)).map(
            lambda number: number * option.multiple
        )
    return st.floats(low, high) if isinstance(kind, Number) else None


def options_of(mode: Mode) -> st.SearchStrategy[dict[str, Any]]:
    found = {
        name: each
        for name, option in mode.declared.items()
        if name not in (*LEFT_OUT, "prompt") and (each := values(option)) is not None
    }
    prompt = values(mode.declared["prompt"])
    assert prompt is not None
    return st.fixed_dictionaries({"prompt": prompt}, optional=found)


def made(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with their groups made; a combination that is refused is no example."""
    try:
        return {
            name: value[0](**value[1]) if isinstance(value, tuple) and isinstance(value[1], dict) else value
            for name, value in given.items()
        }
    except ArgumentError:
        assume(False)
        raise


def fields(request: Request, mode: Mode) -> dict[str, Any]:
    """Return what the engine takes, its own defaults among it, in its own numbers."""
    found: dict[str, Any] = dict(defaults(mode.struct))

    def flatten(content: Mapping[str, Any], prefix: str) -> None:
        for name, value in content.items():
            if isinstance(value, Mapping):
                flatten(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value

    flatten(request.settings, "")
    if found.get("hires.enabled"):
        found["hires.steps"] = found["hires.steps"] or found["sample_params.sample_steps"]
        wide, high = found["hires.target_width"], found["hires.target_height"]
        found["hires.target_width"], found["hires.target_height"] = wide or high, high or wide
        if wide or high:
            found.pop("hires.scale")
    if found.get("sample_params.custom_sigmas"):
        found.pop("sample_params.scheduler")
    return {
        name: np.asarray(value).tolist() if not isinstance(value, float) else np.float32(value)
        for name, value in found.items()
    }


@settings(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data(), mode=st.sampled_from(DRAWING))
def test_every_option_comes_back(data: st.DataObject, mode: Mode) -> None:
    given = made(data.draw(options_of(mode)))
    pictures = {name: PICTURES[name] for name in declared(mode.subject) if name != "prompt"}
    if "control_image" in mode.declared and data.draw(st.booleans()):
        pictures["control_image"] = PICTURE
    size = {"width": 64, "height": 64} if "image" not in pictures else {}
    try:
        first = make_request(mode, {**given, **pictures, **size})
    except ArgumentError:
        assume(False)
        raise
    used = {**first.used, **({MODE: mode.name} if mode.name != "txt2img" else {}), VERSION: "sdcpp-py 1"}
    read = read_text(parameters_text(used, mode.declared))
    assert read is not None
    assert (read.mode, read.unmapped, read.source) == (mode.name, {}, "sdcpp-py")
    assert set(read.needs) == set(pictures) or "control_image" not in pictures
    second = make_request(mode, {**read, **pictures})
    assert fields(second, mode) == fields(first, mode)
    # What this package does itself, too.
    own = [name for name, option in mode.declared.items() if not option.opt.field and option.opt.png]
    assert {name: second.values[name] for name in own} == {name: first.values[name] for name in own}


def test_what_is_noted_is_all_that_changes_pixels() -> None:
    silent = {"batch_count", "control_image", "init_image", "mask_image", "ref_images", "cache", "hires", "pm_params"}
    for mode in DRAWING:
        for option in mode.declared.values():
            if option.opt.field and not option.opt.png and not isinstance(option.kind, (Prompt, Grouped)):
                assert option.opt.field in silent
    assert {name for name, option in declared(LoraGroup).items() if not option.opt.png} == set(declared(LoraGroup))


DRAWN: dict[str, dict[str, Any]] = {
    "plain": {"sampler": "dpm++2m", "scheduler": "karras", "cfg_scale": 3.3, "eta": None},
    "noise": {"sampler": "euler_a", "eta": 0.7, "negative_prompt": "a blue square\nSteps: 3"},
    "second pass": {"hires": Hires(scale=1.5, steps=1, denoising_strength=0.61)},
    "levels": {"sigmas": [0.97, 0.51, 0.13, 0.0]},
    "tiles": {"vae_tiling": Tiling(tile_size_y=16, target_overlap=0.25)},
    "cache": {"cache": Cache("ucache", reuse_threshold=0.4), "steps": 4},
}


@pytest.fixture(scope="module")
def model() -> Any:
    with StableDiffusion() as loaded:
        yield loaded


@pytest.mark.parametrize("name", DRAWN)
def test_pixels(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    options = {"steps": 2, "batch_count": 2, "width": 64, "height": 64, **DRAWN[name]}
    if "sigmas" in options:
        del options["steps"]
    second = model.txt2img("a red circle on a white background", **options)[1]
    second.save(tmp_path / "cat.png")
    assert model.txt2img(**read_parameters(tmp_path / "cat.png"))[0].tobytes() == second.tobytes()


def test_pixels_from_a_picture(model: StableDiffusion) -> None:
    drawn = model.img2img("a star", PICTURE.resize((96, 64)), strength=0.6, steps=3, resize_mode="crop", width=64)[0]
    found = read_parameters(drawn)
    assert (found.mode, found.needs) == ("img2img", ("image",))
    assert model.img2img(image=PICTURE.resize((96, 64)), **found)[0].tobytes() == drawn.tobytes()


def test_loras_and_loading(checkpoint: Path, lora: Path) -> None:
    small: dict[str, Any] = {"width": 64, "height": 64, "steps": 1, "seed": 3, "clip_skip": 2}
    stem = lora.stem
    with StableDiffusion(
        checkpoint, lora_model_dir=lora.parent, rng="cpu", vae_conv_direct=True, circular_x=True, weight_type="f32"
    ) as sd:
        prompt = f"a cat <lora:{stem}:0.3>"
        drawn = sd.txt2img(prompt, loras=[Lora(lora, 0.1), Lora(lora, 0.7)], **small)[0]
        found = read_parameters(drawn)
        assert found["prompt"] == prompt
        assert found["loras"] == (Lora(stem, 0.1), Lora(stem, 0.7))
        assert sd.txt2img(**found)[0].tobytes() == drawn.tobytes()
        assert sd.txt2img(**{**found, "prompt": "a cat"})[0].tobytes() != drawn.tobytes()
    assert found.loading == {"rng": "cpu", "vae_conv_direct": True, "circular_x": True, "weight_type": "f32"}
    with StableDiffusion(checkpoint, lora_model_dir=lora.parent, **found.loading) as again:
        assert again.txt2img(**found)[0].tobytes() == drawn.tobytes()
    with (
        StableDiffusion(checkpoint) as bare,
        pytest.raises(sdcpp_py.ModelError, match="pass its path, or lora_model_d"),
    ):
        bare.txt2img(**{**found, "prompt": "a"})


def test_the_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def pixels(*arguments: object) -> bytes:
        out = tmp_path / "out.png"
        assert cli.main([*map(str, arguments), "-o", str(out)]) == 0
        with Image.open(out) as image:
            return image.tobytes()

    first = tmp_path / "first.png"
    drawn = ["txt2img", "-m", checkpoint, "-p", "a cat", "-W", 64, "-H", 64, "--steps", 2, "--seed", 5, "--rng", "cpu"]
    whole = pixels(*drawn, "--hires", "2", "--hires-steps", "1")
    (tmp_path / "out.png").rename(first)
    assert pixels("txt2img", "-m", checkpoint, "--from", first) == whole
    other = pixels("txt2img", "-m", checkpoint, f"--from={first}", "--hires-width", 192, "--steps", 1)
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (192, 192)
        text = image.info["parameters"]
    assert other != whole
    assert "Steps: 1, " in text
    assert "Hires steps: 1, " in text
    assert "RNG: CPU" in text
    capsys.readouterr()
    for arguments, status, message in (
        (["txt2img"], 2, "Missing option '--prompt'"),
        (["img2img", "--from", first], 1, "was drawn by txt2img, with hires, which img2img does not take"),
        (["txt2img", "--from", tmp_path / "none.png"], 1, "none.png: there is no such file"),
    ):
        assert cli.main([*map(str, arguments)]) == status
        assert message in capsys.readouterr().err
