"""A cancel in each phase of each mode that draws pictures: the next picture is as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from sdcpp_py import CancelledError, Hires, StableDiffusion, engine

PHOTO = Image.new("RGB", (64, 64), "red")
MASK = Image.new("L", (64, 64))
MASK.paste(255, (16, 16, 48, 48))
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 1, "progress": False}
CALLS: dict[str, Callable[[StableDiffusion], Any]] = {
    "txt2img": lambda sd: sd.txt2img("a", **SMALL),
    "batch": lambda sd: sd.txt2img("a", **SMALL, batch_count=2),
    "hires": lambda sd: sd.txt2img("a", **SMALL, hires=Hires(scale=2.0, upscaler="lanczos", steps=1)),
    "img2img": lambda sd: sd.img2img("a", PHOTO, strength=0.9, **SMALL),
    "inpaint": lambda sd: sd.inpaint("a", PHOTO, MASK, strength=0.9, **SMALL),
}


@pytest.fixture(scope="module")
def sd() -> Iterator[StableDiffusion]:
    with StableDiffusion(progress=False, vae_decode_only=False) as made:
        yield made


@pytest.mark.parametrize("name", CALLS)
def test_cancel_in_each_phase(name: str, sd: StableDiffusion) -> None:
    def draw() -> list[bytes]:
        return [image.tobytes() for image in CALLS[name](sd)]

    phases: set[str] = set()
    with engine.tap(lambda phase, shape, values: phases.add(phase)):
        expected = draw()
    assert phases >= {"text", "sampling", "decoding"}
    assert ("encoding" in phases) == (name in ("img2img", "inpaint"))
    for wanted in sorted(phases):

        def stop(phase: str, shape: tuple[int, ...], values: bytes, wanted: str = wanted) -> None:
            if phase == wanted:
                sd.cancel()

        with pytest.raises(CancelledError), engine.tap(stop):
            draw()
        assert draw() == expected, wanted
