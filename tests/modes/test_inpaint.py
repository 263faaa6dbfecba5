from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sdcpp_py import ArgumentError, StableDiffusion
from sdcpp_py.modes import INPAINT, Abilities, Request, make_request
from sdcpp_py.modes.inpaint import drawn_anew, fade, surroundings

GENERATOR = np.random.default_rng(5)
PHOTO = Image.fromarray(GENERATOR.integers(0, 256, (64, 128, 3), np.uint8))
UNET = Abilities(size_multiple=64)
FEW: dict[str, Any] = {"steps": 2, "seed": 1, "cfg_scale": 1.0, "sampler": "euler", "strength": 1.0}


def box(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (128, 64)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (left, top, right, bottom))
    return mask


MASK = box(40, 16, 90, 50)
SOFT = Image.fromarray(np.clip(np.add.outer(np.zeros(64), np.arange(128) * 6 - 300), 0, 255).astype(np.uint8))


def request(mask: Any, image: Any = PHOTO, **options: object) -> Request:
    return make_request(INPAINT, {"prompt": "a", "image": image, "mask": mask, **options}, {"width": 64}, UNET)


def drawn(sd: StableDiffusion, mask: Any, image: Image.Image = PHOTO, **options: object) -> Any:
    return np.asarray(sd.inpaint("a", image, mask, **{**FEW, **options})[0], int)


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (MASK, {}),
        (SOFT, {}),
        (MASK, {"mask_blur": 6}),
        (SOFT, {"mask_blur": 4, "batch_count": 2}),
        (MASK, {"only_masked": True, "width": 64, "height": 64}),
        (SOFT, {"only_masked": True, "width": 64, "height": 64, "mask_blur": 3, "padding": 0}),
        (box(100, 60, 101, 61), {"only_masked": True, "width": 64, "height": 64}),
        (MASK.point([255 - level for level in range(256)]), {"invert": True}),
        (np.asarray(MASK) > 0, {}),
        (MASK.convert("RGBA"), {"strength": 0.5}),
    ],
    ids=["plain", "soft", "blur", "soft blur", "part", "soft part", "one pixel", "invert", "bool", "RGBA"],
)
def test_outside_the_mask_nothing_changes(sd: StableDiffusion, mask: Any, options: dict[str, Any]) -> None:
    made = drawn(sd, mask, **options)
    levels = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask * 255)
    inside = (255 - levels if options.get("invert") else levels) > 0
    difference = np.abs(made - np.asarray(PHOTO, int)).sum(axis=2)
    assert made.shape == (64, 128, 3)
    assert difference[~inside].max() == 0
    assert (difference[inside] > 0).mean() > 0.5, "inside it is another picture"


def test_a_soft_mask_blends(sd: StableDiffusion) -> None:
    hard = drawn(sd, SOFT.point([0] * 128 + [255] * 128))
    soft = drawn(sd, SOFT)
    share = np.asarray(SOFT)[..., None] / 255
    everywhere = np.broadcast_to(np.asarray(SOFT)[..., None] >= 128, hard.shape)
    wanted = np.asarray(PHOTO) + (hard - np.asarray(PHOTO)) * share
    assert np.abs(soft - wanted)[everywhere].max() <= 1, "where it is at least half, the same was drawn"


def test_invert_and_numpy_give_the_same(sd: StableDiffusion) -> None:
    first = drawn(sd, MASK)
    assert (drawn(sd, np.asarray(MASK) // 255) == first).all()
    assert (drawn(sd, 255 - np.asarray(MASK), invert=True) == first).all()


def test_each_picture_of_a_batch_is_the_single_one(sd: StableDiffusion) -> None:
    batch = sd.inpaint("a", PHOTO, MASK, **{**FEW, "batch_count": 2})
    assert (np.asarray(batch[1]) == drawn(sd, MASK, seed=2)).all()
    assert batch[0].tobytes() != batch[1].tobytes()


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (box(0, 0, 0, 0), {}, "^mask is black: nothing would be drawn anew"),
        (MASK.point([level // 3 for level in range(256)]), {}, "^mask is black: "),
        (box(0, 0, 128, 64), {}, "^mask is white: nothing would be kept; use img2img"),
        (box(0, 0, 128, 64), {"invert": True}, "^mask is black after invert: "),
        (box(0, 0, 0, 0), {"invert": True}, "^mask is white after invert: "),
        (box(0, 0, 9, 9, (64, 64)), {}, "^mask is 64x64, but image is 128x64: choose with resize_mode: crop, pad or"),
        (Image.new("L", (1, 1), 255), {}, "^mask is 1x1: too small for a picture"),
        (b"no", {}, "^mask: not a picture"),
        (None, {}, "^mask must be a Pillow image"),
        (MASK, {"mask_blur": -1}, "^mask_blur must be from 0 to 256"),
        (MASK, {"padding": 1.5}, "^padding must be an integer"),
        (MASK, {"strength": 0.1}, "^strength 0.1 of 5 steps leaves no step"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_masks(only_masked: bool, mask: Any, options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        request(mask, only_masked=only_masked, steps=5, **options)
    assert "\n" not in str(caught.value)


def test_sizes() -> None:
    with pytest.raises(ArgumentError, match="^padding needs only_masked$"):
        request(MASK, padding=8)
    odd = Image.new("RGB", (100, 70))
    with pytest.raises(ArgumentError, match="^image is 100x70, but sides"):
        request(box(1, 1, 5, 5, (100, 70)), odd)
    whole = request(box(10, 10, 50, 50, (100, 70)), odd, resize_mode="crop")
    assert whole.settings["mask_image"].shape == (64, 64, 1)
    assert set(np.unique(whole.settings["mask_image"])) == {0, 255}
    part = request(box(10, 10, 50, 50, (100, 70)), odd, only_masked=True, width=128, height=64)
    assert part.settings["init_image"].shape == (64, 128, 3)
    assert part.finish is not None
    assert part.finish(Image.new("RGB", (128, 64))).size == (100, 70), "the whole picture comes back"
    suits = Abilities(size_multiple=64, size=(128, 192))
    given = {"prompt": "a", "image": odd, "mask": box(1, 1, 9, 9, (100, 70)), "only_masked": True}
    assert make_request(INPAINT, given, None, suits).settings["init_image"].shape == (192, 128, 3)
    other = request(box(1, 1, 9, 9, (50, 35)), odd, resize_mode="resize", width=64, height=64)
    assert other.settings["mask_image"].any(), "a mask of another size is brought to the picture's"


def test_what_is_noted() -> None:
    used = request(MASK, mask_blur=4, only_masked=True, padding=8, invert=True, width=64, height=64).used
    noted = {name: used[name] for name in ("mask_blur", "only_masked", "padding", "invert", "strength")}
    assert noted == {"mask_blur": 4, "only_masked": True, "padding": 8, "invert": True, "strength": 0.75}
    assert not {"mask_blur", "only_masked", "padding", "invert", "resize_mode", "mask"} & set(request(MASK).used)


def test_surroundings() -> None:
    """A1111's rule: the mask's box with padding, widened to the proportions of what is drawn, within the picture."""
    assert surroundings(box(40, 16, 90, 50), 0, (64, 64)) == (40, 8, 90, 58)
    assert surroundings(box(40, 16, 90, 50), 4, (64, 64)) == (36, 4, 94, 62)
    assert surroundings(box(40, 16, 90, 50), 32, (64, 64)) == (8, 0, 122, 64), "no higher than the picture"
    assert surroundings(box(0, 0, 1, 1), 0, (128, 64)) == (0, 0, 2, 1)
    assert surroundings(box(127, 63, 128, 64), 10, (64, 64)) == (117, 53, 128, 64)


def test_fade() -> None:
    mask = Image.new("L", (80, 80))
    ImageDraw.Draw(mask).ellipse((10, 10, 69, 69), fill=255)
    for pixels in (1, 4, 16):
        faded = np.asarray(fade(mask, pixels), int)
        assert (faded[np.asarray(mask) == 0] == 0).all()
        assert (faded[np.asarray(mask) > 0] > 0).all(), "nothing of the mask is lost"
        assert faded[40, 40] == 255
        row = faded[40, 10:40]
        assert (np.diff(row) >= 0).all()
        assert abs((row < 255).sum() - pixels) <= 2
        assert np.abs(np.diff(row)).max() <= 255 / (pixels + 1) + 1, "it rises evenly"
        assert (faded == faded[::-1, ::-1]).all()
        assert (faded == faded.T).all()
    assert (np.asarray(fade(box(0, 0, 64, 64), 8))[30:34, 0] == 255).all(), "the picture's border is no edge"
    assert fade(mask, 0) is mask


def test_drawn_anew_covers_the_mask() -> None:
    fine = box(63, 31, 65, 33)
    coarse = np.asarray(drawn_anew(fine, (32, 16)))
    assert coarse[7:9, 15:17].min() == 255
    assert coarse.sum() == 4 * 255
    assert (np.asarray(drawn_anew(SOFT, SOFT.size)) == (np.asarray(SOFT) >= 128) * 255).all()
