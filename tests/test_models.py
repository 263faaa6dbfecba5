"""The embedded model, as the package ships it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdcpp_py
from embedded.reading import read
from sdcpp_py import Lora, StableDiffusion, cli, models

OUTLINE = Path(__file__).parent / "data" / "embedded-outline.safetensors"
PROMPT = "a red circle on a white background"


@pytest.fixture(scope="module")
def embedded() -> Iterator[StableDiffusion]:
    with StableDiffusion() as sd:
        yield sd


@pytest.fixture(scope="module")
def drawn(embedded: StableDiffusion) -> sdcpp_py.Images:
    """What it draws for PROMPT, with nothing but a seed."""
    return embedded.txt2img(PROMPT, seed=3)


def draw(sd: StableDiffusion, **more: object) -> np.ndarray:
    return np.asarray(sd.txt2img(PROMPT, **{"seed": 3, **more})[0])  # type: ignore[arg-type]


def draw_once(sd: StableDiffusion, prompt: str) -> bytes:
    """One step tells whether two prompts are the same to it."""
    return sd.txt2img(prompt, seed=3, steps=1)[0].tobytes()


def test_it_is_small_enough_to_ship() -> None:
    assert models.EMBEDDED.stat().st_size <= 16 << 20
    assert OUTLINE.stat().st_size <= 1 << 20


def test_it_draws_what_is_asked_for(embedded: StableDiffusion, drawn: sdcpp_py.Images) -> None:
    found = read(np.asarray(drawn[0]))
    assert (found.shape, found.colour, found.background) == ("circle", "red", "white")
    found = read(np.asarray(embedded.txt2img("a yellow square on a blue background", seed=3)[0]))
    assert (found.shape, found.colour, found.background) == ("square", "yellow", "blue")


def test_its_defaults_suit_it(embedded: StableDiffusion, drawn: sdcpp_py.Images) -> None:
    assert drawn[0].size == (128, 128)
    assert drawn.parameters["steps"] == 20
    assert drawn.parameters["cfg_scale"] == 3.0
    assert drawn.parameters["sampler"] == "euler"
    assert drawn.parameters["Model"] == "embedded"
    assert embedded.txt2img(PROMPT, seed=3, steps=1, width=64, height=128)[0].size == (64, 128)


def test_the_command_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["txt2img", "-p", PROMPT, "-s", "3", "-o", str(tmp_path / "out.png")]) == 0
    assert "seed 3" in capsys.readouterr().out
    with Image.open(tmp_path / "out.png") as image:
        assert read(np.asarray(image)).shape == "circle"


@pytest.mark.parametrize("mode", ["immediately", "at_runtime"])
def test_outline_lora(mode: str, embedded: StableDiffusion, drawn: sdcpp_py.Images) -> None:
    with StableDiffusion(lora_apply_mode=mode) as sd:
        none, some, strong = (draw(sd, steps=1, loras=[Lora(OUTLINE, strength)]) for strength in (0.0, 0.8, 1.5))
        plain = draw(embedded, steps=1)
        assert np.array_equal(none, plain)
        assert not np.array_equal(some, plain)
        assert not np.array_equal(strong, some)
        plain, some = np.asarray(drawn[0]), draw(sd, loras=[Lora(OUTLINE, 0.8)])
    middle = (slice(56, 72), slice(56, 72))
    assert plain[middle].mean(axis=(0, 1))[1] < 100, "red inside"
    assert some[middle].mean(axis=(0, 1))[1] > 180, "an outline is white inside"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a photo of an astronaut riding a horse",
        "red " * 1_000,
        "🟥 ⭕ 猫",
        "a (red:1.4) [blue] circle",
        "(((" * 50,
    ],
    ids=["empty", "foreign", "long", "emoji", "weights", "brackets"],
)
def test_prompts_outside_the_grammar(embedded: StableDiffusion, prompt: str) -> None:
    """No crash, and still a picture of the kind it knows: a plain background, not noise."""
    picture = np.asarray(embedded.txt2img(prompt, seed=1, steps=8)[0]).astype(int)
    border = np.concatenate([picture[:3].reshape(-1, 3), picture[-3:].reshape(-1, 3)])
    assert np.abs(border - np.median(border, axis=0)).mean() < 25


def test_weights_of_words_count(embedded: StableDiffusion) -> None:
    plain, weighted = ("a red circle on a white background", "a (red:1.4) circle on a white background")
    assert draw_once(embedded, weighted) != draw_once(embedded, plain)
    assert draw_once(embedded, plain) == draw_once(embedded, "a (red:1.0) circle on a white background")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory() -> None:
    code = f"""
import re, sdcpp_py
with sdcpp_py.StableDiffusion() as sd:
    sd.txt2img({PROMPT!r}, seed=3, steps=2)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) <= 300 * 1024, "300 MiB"


def test_public_class_names_the_model() -> None:
    with sdcpp_py.StableDiffusion() as sd:
        assert repr(sd) == "<StableDiffusion embedded.gguf>"
