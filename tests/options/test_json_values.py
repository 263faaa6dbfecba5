from __future__ import annotations

from typing import Any

import pytest

from sdcpp_py import Hires, Lora
from sdcpp_py.errors import ArgumentError
from sdcpp_py.modes import EDIT, IMG2IMG, TXT2IMG
from sdcpp_py.options.json_values import built, holds_pictures, replaced


def named(kind: str) -> Any:
    return lambda name, value: f"{kind} {name} {value}"


def test_pictures_and_files_are_replaced_and_groups_are_built() -> None:
    asked = {
        "prompt": "x",
        "steps": None,
        "hires": {"model": "x4", "scale": 3.0},
        "loras": ["a", {"path": "b", "multiplier": 0.5}],
        "control_image": "AAAA",
        "photo_maker": {"id_images": ["B", "C"]},
        "cache": "ucache",
    }
    made = replaced(TXT2IMG.declared, asked, named("picture"), named("file"))
    assert made == {
        "prompt": "x",
        "steps": None,
        "hires": {"model": "file hires.model x4", "scale": 3.0},
        "loras": [{"path": "file loras[0].path a"}, {"path": "file loras[1].path b", "multiplier": 0.5}],
        "control_image": "picture control_image AAAA",
        "photo_maker": {"id_images": ["picture photo_maker.id_images[0] B", "picture photo_maker.id_images[1] C"]},
        "cache": "ucache",
    }  # fmt: skip
    whole = built(TXT2IMG.declared, {name: value for name, value in made.items() if name != "photo_maker"})
    assert whole["hires"] == Hires(model="file hires.model x4", scale=3.0)
    assert whole["loras"] == [Lora("file loras[0].path a"), Lora("file loras[1].path b", 0.5)]
    assert replaced(TXT2IMG.declared, {"loras": {"a": 2.0}}, named("picture"), named("file"))["loras"] == [
        {"path": "file loras[0].path a", "multiplier": 2.0}
    ]
    assert replaced(EDIT.declared, {"images": "AAAA"}, named("p"), named("f")) == {"images": ["p images[0] AAAA"]}
    taking = [name for name, option in TXT2IMG.declared.items() if holds_pictures(option)]
    assert taking == ["control_image", "photo_maker"]
    assert holds_pictures(IMG2IMG.declared["image"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"stepz": 1}, "'stepz' is no option here; did you mean steps?"),
        ({"progress": True}, "'progress' is no option here"),
        ({"hires": {"skale": 2}}, "hires has no 'skale'; it has upscaler"),
        ({"skip_layer_guidance": {"layers": [1]}}, "skip_layer_guidance needs scale"),
        ({"loras": 3}, "loras must be a list of names and objects, not 3"),
        ({"loras": [3]}, r"loras\[0\] must be a name or an object"),
        ({"loras": [{"multiplier": 1}]}, r"loras\[0\] needs path"),
    ],
)
def test_what_is_none_is_said(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        replaced(TXT2IMG.declared, asked, named("picture"), named("file"))
