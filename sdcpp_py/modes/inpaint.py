"""Parts of a picture drawn anew."""

from __future__ import annotations

from typing import Any

import PIL.Image
from PIL.Image import Image, Resampling

from ..engine.fields import IMAGE
from ..errors import ArgumentError
from ..options.generation import (
    Conditioning,
    Control,
    Decoding,
    Fitting,
    MaskedImage,
    Masking,
    Noising,
    Persons,
    Previewing,
    Prompting,
    Sampling,
    Size,
    Watching,
)
from ..pictures import fit
from .inputs import Abilities, Prepared, aligned, fit_control, size_from, strength_settings
from .mode import Mode

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""
_HALF = 128  # of a mask: from here on it is drawn anew, as diffusers and A1111 round it


class InpaintOptions(
    Prompting, Noising, Masking, Sampling, Size, Fitting, Conditioning, Decoding, Control, Persons, Previewing,
    Watching, total=False,
):  # fmt: skip
    """Every option of :meth:`sdcpp_py.StableDiffusion.inpaint` besides the prompt, the picture and the mask."""


def fade(mask: Image, pixels: int) -> Image:
    """Return a mask that rises from its edge inwards, over some pixels; outside it stays 0.

    A1111's blur reaches as far outwards as inwards; here what lies outside the mask must not change.
    """
    import numpy as np

    if pixels == 0:
        return mask
    inside = np.pad(np.asarray(mask) > 0, 1, constant_values=True)  # the picture's border is no edge
    depth = np.zeros(inside.shape, np.int32)
    for turn in range(pixels):
        depth += inside
        core = inside.copy()
        core[1:] &= inside[:-1]
        core[:-1] &= inside[1:]
        beside = core.copy() if turn % 2 else inside  # squares and diamonds in turn are nearly round
        core[:, 1:] &= beside[:, :-1]
        core[:, :-1] &= beside[:, 1:]
        inside = core
    share = depth[1:-1, 1:-1] / (pixels + 1) + inside[1:-1, 1:-1] / (pixels + 1)
    return PIL.Image.fromarray((np.asarray(mask) * share + 0.5).astype(np.uint8))


def surroundings(mask: Image, padding: int, size: tuple[int, int]) -> Box:
    """Return the part of a picture that is drawn with ``only_masked``.

    As A1111's get_crop_region and expand_crop_region: what is not black, with padding, made as wide or as high as the
    proportions of what is drawn ask for, within the picture.
    """
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    left, top = max(0, left - padding), max(0, top - padding)
    right, bottom = min(mask.width, right + padding), min(mask.height, bottom + padding)
    wide, high = right - left, bottom - top
    wanted = max(wide, round(high * size[0] / size[1])), max(high, round(wide * size[1] / size[0]))

    def widen(start: int, end: int, length: int, most: int) -> tuple[int, int]:
        length = min(length, most)
        start = min(max(0, start - (length - (end - start)) // 2), most - length)
        return start, start + length

    left, right = widen(left, right, wanted[0], mask.width)
    top, bottom = widen(top, bottom, wanted[1], mask.height)
    return left, top, right, bottom


def drawn_anew(mask: Image, size: tuple[int, int]) -> Image:
    """Return what the engine draws anew: 255 wherever a part of the pixel is at least half white, else 0."""
    rounded = mask.point([0] * _HALF + [255] * (256 - _HALF))
    if rounded.size != size:
        rounded = rounded.resize(size, Resampling.BOX)
    return rounded.point([0] + [255] * 255)


def _mask_of(values: dict[str, Any]) -> Image:
    """Return the mask in its picture's size, inverted if asked for.

    Raises:
        ArgumentError: it has another size, or nothing or all is to be drawn anew.
    """
    image, mask = values["image"], values["mask"]
    if mask.size != image.size and values["resize_mode"] == "error":
        raise ArgumentError(
            f"mask is {mask.width}x{mask.height}, but image is {image.width}x{image.height}: choose with resize_mode: "
            "crop, pad or resize"
        )
    mask = fit(mask, image.size, values["resize_mode"], "mask")
    if values["invert"]:
        mask = mask.point([255 - level for level in range(256)])
    levels = [level for level, count in enumerate(mask.histogram()) if count]
    least, most = levels[0], levels[-1]
    after = " after invert" if values["invert"] else ""
    if most < _HALF:
        raise ArgumentError(f"mask is black{after}: nothing would be drawn anew; make that part white")
    if least >= _HALF:
        raise ArgumentError(f"mask is white{after}: nothing would be kept; use img2img, or make what stays black")
    return mask


def prepare(values: dict[str, Any], able: Abilities) -> Prepared:
    """Bring the pictures to the size that is drawn; the original goes back where the mask is black."""
    mask = _mask_of(values)
    if values["only_masked"]:
        return _prepare_part(values, mask, able)
    image = values["image"]
    size = values["width"], values["height"] = size_from(image, values, able, "image")
    kept = values["image"] = fit(image, size, values["resize_mode"], "image")
    mask = fit(mask, size, values["resize_mode"], "mask")
    values["mask"] = drawn_anew(mask, size)
    faded = fade(mask, values["mask_blur"])
    fit_control(values, size)
    return Prepared(strength_settings(values), lambda drawn: PIL.Image.composite(drawn, kept, faded))


def _prepare_part(values: dict[str, Any], mask: Image, able: Abilities) -> Prepared:
    """Bring the mask's surroundings to the size that is drawn; only they are put back."""
    size = values["width"], values["height"] = aligned(values, able)
    kept: Image = values["image"]
    faded = fade(mask, values["mask_blur"])
    box = surroundings(mask, values["padding"], size)
    values["image"] = kept.crop(box).resize(size, Resampling.LANCZOS)
    values["mask"] = drawn_anew(mask.crop(box), size)
    if values["control_image"] is not None:
        control = fit(values["control_image"], kept.size, values["resize_mode"], "control_image")
        values["control_image"] = control.crop(box).resize(size, Resampling.LANCZOS)
        fit_control(values, size)

    def finish(drawn: Image) -> Image:
        whole = kept.copy()
        part = drawn.resize((box[2] - box[0], box[3] - box[1]), Resampling.LANCZOS)
        whole.paste(part, box[:2], faded.crop(box))
        return whole

    return Prepared(strength_settings(values), finish)


INPAINT = Mode("inpaint", "Draw parts of a picture anew.", MaskedImage, InpaintOptions, IMAGE, prepare, takes_size=True)
