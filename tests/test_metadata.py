from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from sdcpp_py.metadata import parameters_text, split_text
from sdcpp_py.modes import TXT2IMG

PAIR = re.compile(r'\s*([\w ]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""The pattern that readers of the form use: name, colon, quoted string or text without a comma."""


def read(text: str) -> dict[str, str]:
    """Return the pairs of the last line, as readers do."""
    pairs = PAIR.findall(text.split("\n")[-1])
    return {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


def test_the_form_is_a1111s() -> None:
    text = parameters_text(
        {
            "prompt": "a cat",
            "negative_prompt": "a dog",
            "width": 512,
            "height": 768,
            "scheduler": "karras",
            "sampler": "dpm++2m",
            "steps": 20,
            "cfg_scale": 7.0,
            "seed": 42,
            "eta": None,
            "loras": [{"path": "a", "multiplier": 0.8}, {"path": "b", "multiplier": 1.0}],
            "batch_count": 4,
            "Model": "sd1",
        },
        TXT2IMG.declared,
    )
    assert text == (
        "a cat\nNegative prompt: a dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 512x768, "
        'Lora: "a: 0.8, b: 1", Model: sd1'
    )


def test_groups_are_written_by_their_fields() -> None:
    text = parameters_text(
        {
            "prompt": "a",
            "hires": {"upscaler": "Latent", "target_width": 128, "target_height": 64, "steps": 3},
            "skip_layer_guidance": {"layers": [7, 8], "scale": 2.5},
            "vae_tiling": {"tile_size_x": 16, "tile_size_y": 8},
            "cache": {"mode": "ucache", "use_relative_threshold": False},
        },
        TXT2IMG.declared,
    )
    assert read(text) == {
        "Hires upscaler": "Latent",
        "Hires resize": "128x64",
        "Hires steps": "3",
        "Skip layers": "7, 8",
        "SLG scale": "2.5",
        "VAE tiling": "True",
        "VAE tile size": "16x8",
        "Cache": "ucache",
        "Cache relative": "False",
    }


@given(st.floats(-100, 100))
def test_numbers_can_be_read_back_exactly(number: float) -> None:
    text = parameters_text({"prompt": "p", "cfg_scale": number, "sigmas": [number, 0.0]}, TXT2IMG.declared)
    found = read(text)
    assert float(found["CFG scale"]) == number
    assert [float(each) for each in found["Sigmas"].split(", ")] == [number, 0.0]


@given(
    st.integers(0, 2**63 - 1),
    st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=30).map(str.strip).filter(bool),
)
def test_it_can_be_read_back(seed: int, model: str) -> None:
    found = read(parameters_text({"prompt": "p", "steps": 3, "seed": seed, "Model": model}, TXT2IMG.declared))
    assert found["Seed"] == str(seed)
    assert found["Model"] == model


def test_a_line_of_spaces_takes_no_minutes() -> None:
    line = "a" + " " * 400_000
    assert split_text(line, {}).prompt.rstrip() == "a"
