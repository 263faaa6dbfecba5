"""In which modes a model draws."""

from __future__ import annotations

import pytest

from sdcpp_py import StableDiffusion
from sdcpp_py.modes import DRAWING, FILMING
from sdcpp_py.modes.able import modes_of
from sdcpp_py.modes.inputs import Abilities

FILM = {"draws_images": False, "draws_videos": True}


@pytest.mark.parametrize(
    ("able", "wanted"),
    [
        ({}, "txt2img img2img inpaint edit"),
        ({"reads_references": False}, "txt2img img2img inpaint"),
        ({"fills_masks": True, "reads_references": False}, "inpaint"),
        (FILM, "txt2vid"),
        ({**FILM, "takes_first_frame": True}, "txt2vid img2vid"),
        ({**FILM, "takes_reference": True}, "txt2vid img2vid"),
        ({**FILM, "takes_first_frame": True, "needs_first_frame": True}, "img2vid"),
    ],
)
def test_modes(able: dict[str, bool], wanted: str) -> None:
    assert modes_of(Abilities(**able)) == tuple(wanted.split())


def test_modes_of_a_model(sd: StableDiffusion) -> None:
    """Each is a method that takes the model."""
    assert sd.modes == ("txt2img", "img2img", "inpaint")
    assert set(sd.modes) <= {mode.name for mode in (*DRAWING, *FILMING)}
