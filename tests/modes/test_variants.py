"""Models that take pictures in a way of their own, each drawn with by its mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcpp_py import ArgumentError, Images, StableDiffusion
from support.checkpoints import VARIANTS, write_checkpoint

PHOTO = Image.fromarray(np.random.default_rng(7).integers(0, 256, (128, 128, 3), np.uint8))
OTHER = PHOTO.transpose(Image.Transpose.ROTATE_180)
MASK = Image.new("L", PHOTO.size)
MASK.paste(255, (32, 32, 96, 96))
FEW: dict[str, Any] = {"steps": 1, "seed": 1, "progress": False}


def edit(sd: StableDiffusion, image: Image.Image, **options: Any) -> Images:
    return sd.edit("a", image, **options)


# How a picture goes in, and what the model draws without one.
DRAW: dict[str, Callable[..., Images]] = {
    "sd1_inpaint": lambda sd, image, **options: sd.inpaint("a", image, MASK, strength=1.0, **options),
    "sd1_pix2pix": edit,
    "flux_fill": lambda sd, image, **options: sd.inpaint("a", image, MASK, strength=1.0, **options),
    "flux_control": lambda sd, image, **options: sd.txt2img("a", control_image=image, **options),
    "flux2": edit,
}
FAMILIES = {
    "sd1_inpaint": "SD 1.x Inpaint",
    "sd1_pix2pix": "Instruct-Pix2Pix",
    "flux_fill": "Flux Fill",
    "flux_control": "Flux Control",
    "flux2": "Flux.2 klein",
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """Each model, loaded once."""
    path = tmp_path_factory.mktemp("variants") / f"{request.param}.safetensors"
    write_checkpoint(request.param, path, tiny=True)
    with StableDiffusion(path) as sd:
        yield request.param, sd


def middle(images: Images, index: int = 0) -> bytes:
    """Return the pixels that are drawn anew by every mode."""
    wide, high = images[index].size
    return images[index].crop((wide // 2 - 8, high // 2 - 8, wide // 2 + 8, high // 2 + 8)).tobytes()


def test_a_picture_goes_in(variant: tuple[str, StableDiffusion]) -> None:
    name, sd = variant
    assert sd._context is not None
    assert sd._context.traits()["family"] == FAMILIES[name]  # type: ignore[attr-defined]
    # The least step of sides that it takes, which its patches need not divide.
    size = {"width": 64 + sd._context.abilities()["size_multiple"], "height": 64}  # type: ignore[attr-defined]
    cut = {} if DRAW[name] is edit else {"resize_mode": "crop"}
    plain = sd.txt2img("a", **size, **FEW)
    first = DRAW[name](sd, PHOTO, **size, **cut, **FEW)
    other = DRAW[name](sd, OTHER, **size, **cut, **FEW)
    assert first[0].size == tuple(size.values())
    assert len({middle(plain), middle(first), middle(other)}) == 3, "what goes in shows where it is drawn anew"
    batch = DRAW[name](sd, PHOTO, **size, **cut, **FEW, batch_count=2)
    second = DRAW[name](sd, PHOTO, **size, **cut, **{**FEW, "seed": 2})
    assert [middle(batch, 0), middle(batch, 1)] == [middle(first), middle(second)]
    if DRAW[name] is not edit:
        with pytest.raises(ArgumentError, match=rf"^this model \({FAMILIES[name]}\) reads no reference pictures; edit"):
            sd.edit("a", PHOTO, **FEW)
        assert middle(sd.txt2img("a", **size, **FEW)) == middle(plain)
