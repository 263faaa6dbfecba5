from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcpp_py import ArgumentError, StableDiffusion
from sdcpp_py.modes import EDIT, Abilities, Request, make_request
from support.checkpoints import write_checkpoint

PHOTO = Image.fromarray(np.random.default_rng(5).integers(0, 256, (64, 96, 3), np.uint8))
FLUX = Abilities(size_multiple=8, reference_multiple=16)


def request(images: Any, **options: object) -> Request:
    return make_request(EDIT, {"prompt": "a", "images": images, **options}, {"width": 512, "height": 512}, FLUX)


def sizes(made: Request) -> list[tuple[int, int]]:
    return [(each.shape[1], each.shape[0]) for each in made.settings["ref_images"]]


@pytest.mark.parametrize(
    ("images", "options", "drawn", "references"),
    [
        ([(96, 64)], {}, (96, 64), [(96, 64)]),
        ([(100, 70)], {}, (96, 72), [(96, 64)]),
        ([(4000, 3000)], {}, (1184, 888), [(1184, 880)]),
        ([(96, 64), (64, 640)], {"width": 128, "height": 128}, (128, 128), [(160, 112), (48, 400)]),
        ([(96, 64)], {"width": 128}, (128, 128), [(160, 112)]),
        ([(96, 64), (160, 16)], {"auto_resize": False}, (96, 64), [(96, 64), (160, 16)]),
        ([(8192, 2)], {}, (8192, 8), [(16_384, 16)]),
        ([(16_384, 2)], {"width": 1024, "height": 1024}, (1024, 1024), [(16_384, 16)]),
    ],
    ids=str,
)
def test_sizes(
    images: list[tuple[int, int]],
    options: dict[str, object],
    drawn: tuple[int, int],
    references: list[tuple[int, int]],
) -> None:
    made = request([Image.new("RGB", size) for size in images], **options)
    assert (made.settings["width"], made.settings["height"]) == drawn
    assert sizes(made) == references
    assert made.settings["auto_resize_ref_image"] is False, "it is done"


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "^images needs at least one picture"),
        ([PHOTO, 5], {}, r"^images\[1\] must be a Pillow image"),
        (["none.png"], {}, r"^images\[0\] .*no such file"),
        ({"a": PHOTO}, {}, "^images must be several pictures"),
        ([PHOTO, Image.new("L", (1, 1))], {}, r"^images\[1\] is 1x1: too small"),
        ([PHOTO, Image.new("L", (50, 40))], {"auto_resize": False}, r"^images\[1\] is 50x40: without auto_resize its "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_references(images: Any, options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        request(images, **options)


def test_one_picture_needs_no_list(tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "a.png")
    for alone in (PHOTO, np.asarray(PHOTO), str(tmp_path / "a.png"), tmp_path / "a.png"):
        assert sizes(request(alone)) == [(96, 64)]


def test_a_model_that_reads_no_references(sd: StableDiffusion) -> None:
    with pytest.raises(ArgumentError, match=r"^this model \(SD 1.x\) reads no reference pictures; edit needs"):
        sd.edit("a", [PHOTO])


@pytest.mark.parametrize("family", ["flux", "qwen_image"])
def test_references_change_the_picture(family: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    write_checkpoint(family, path, tiny=True)
    few: dict[str, Any] = {"width": 64, "height": 64, "steps": 1, "seed": 1, "cfg_scale": 1.0}
    other = PHOTO.transpose(Image.Transpose.ROTATE_180)
    with StableDiffusion(path) as sd:
        plain = sd.txt2img("a", **few)[0].tobytes()
        made = {
            name: sd.edit("a", images, **few)[0].tobytes()
            for name, images in {"one": [PHOTO], "other": [other], "two": [PHOTO, other]}.items()
        }
        assert len({plain, *made.values()}) == 4
        batch = sd.edit("a", PHOTO, **{**few, "batch_count": 2})
        assert batch[0].tobytes() == made["one"]
        assert batch[1].tobytes() == sd.edit("a", PHOTO, **{**few, "seed": 2})[0].tobytes()
        assert sd.txt2img("a", **few)[0].tobytes() == plain
