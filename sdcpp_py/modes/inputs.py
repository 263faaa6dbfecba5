"""What becomes of the pictures that go into a mode, once it is known which model draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .. import engine
from ..engine.fields import IMAGE
from ..errors import ArgumentError
from ..options import MAX_SIDE, Option
from ..pictures import fit

Finish = Callable[[Image.Image], Image.Image]
"""Makes the picture that a caller gets of the one that was drawn."""


@dataclass(frozen=True)
class Abilities:
    """What a loaded model is able to do besides drawing from a text.

    Attributes:
        size_multiple: sides of pictures are multiples of it, in pixels.
        draws_images: not only video.
        reads_references: reference pictures.
        reference_multiple: sides of reference pictures are multiples of it.
        reads_control_image: a control picture itself, without a ControlNet.
        fills_masks: it is made for inpainting, and needs a picture and a mask.
        draws_videos: videos.
        frame_step: their frames are one more than a multiple of it.
        needs_first_frame: it goes on from a picture.
        takes_first_frame: it can.
        takes_last_frame: a picture that the video ends with, too.
        takes_reference: a picture of what is in the video.
        takes_control_frames: a frame to follow for each frame.
        is_pair: it has a second diffusion model for the steps with much noise.
        size: the width and height that suit it, where they are others than the engine's own.
    """

    size_multiple: int = 8
    draws_images: bool = True
    reads_references: bool = True
    reference_multiple: int = 8
    reads_control_image: bool = True
    fills_masks: bool = False
    draws_videos: bool = False
    frame_step: int = 0
    needs_first_frame: bool = False
    takes_first_frame: bool = False
    takes_last_frame: bool = False
    takes_reference: bool = False
    takes_control_frames: bool = False
    is_pair: bool = False
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Prepared:
    """What follows from a mode's pictures.

    Attributes:
        settings: engine fields that follow from several options.
        finish: what is done to each picture that was drawn.
        warnings: what is done otherwise than asked for, as messages.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    finish: Finish | None = None
    warnings: Sequence[str] = ()


def default_of(path: str) -> Any:
    """Return the engine's own default of a field."""
    return engine.fields.defaults(IMAGE)[path]


def aligned(values: Mapping[str, Any], able: Abilities) -> tuple[int, int]:
    """Return the size that is drawn for the width and height that are asked for, one that suits the model for None."""
    suits = able.size or (default_of("width"), default_of("height"))
    sides = (values["width"] or suits[0], values["height"] or suits[1])
    wide, high = (-(-side // able.size_multiple) * able.size_multiple for side in sides)
    return wide, high


def size_from(image: Image.Image, values: Mapping[str, Any], able: Abilities, what: str) -> tuple[int, int]:
    """Return the size that is drawn from a picture: what is asked for, or the picture's own.

    Args:
        image: the picture.
        values: with width, height and resize_mode. Of one side alone the other follows by the picture's proportions.
        able: what the model is able to do.
        what: name of the picture's argument, for messages.

    Raises:
        ArgumentError: the picture's size is no size for the model, and resize_mode is error.
    """
    how = values["resize_mode"]
    asked = values["width"], values["height"]
    if all(asked):
        return aligned(values, able)
    multiple = able.size_multiple
    scale = asked[0] / image.width if asked[0] else asked[1] / image.height if asked[1] else 1.0
    nearest = {"crop": math.floor, "pad": math.ceil}.get(how, round)
    most = MAX_SIDE // multiple
    sides = [
        (-(-side // multiple) if side else min(most, max(1, nearest(own * scale / multiple)))) * multiple
        for side, own in zip(asked, image.size, strict=True)
    ]
    if how == "error" and not any(asked) and image.size != (sides[0], sides[1]):
        raise ArgumentError(
            f"{what} is {image.width}x{image.height}, but sides of what this model draws are multiples of {multiple}: "
            "choose with resize_mode: crop, pad or resize"
        )
    return sides[0], sides[1]


def strength_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's strength with which int(steps * strength) steps are drawn, as by diffusers.

    The engine draws one more, as A1111 does: https://github.com/huggingface/diffusers,
    StableDiffusionImg2ImgPipeline.get_timesteps.

    Raises:
        ArgumentError: that is no step.
    """
    steps = values["steps"] or default_of("sample_params.sample_steps")
    strength = default_of("strength") if values["strength"] is None else values["strength"]
    drawn = min(int(steps * strength), steps)
    if drawn < 1:
        raise ArgumentError(
            f"strength {strength:g} of {steps} steps leaves no step to draw; the least is {1 / steps:.3g}, or take "
            "more steps"
        )
    return {"strength": 1.0 if drawn == steps else (drawn - 0.5) / steps}


def check_beside(values: Mapping[str, Any], options: Mapping[str, Option]) -> None:
    """Raise ArgumentError for what would do nothing without a control picture, or without a switch."""
    for name in ("control_strength", "canny"):
        given = values.get(name) is not None and values[name] is not False
        if given and values.get("control_image") is None:
            raise ArgumentError(f"{name} needs a control_image")
    for name, switch in (("canny_low", "canny"), ("canny_high", "canny"), ("padding", "only_masked")):
        if name in values and values[name] != options[name].default and not values[switch]:
            raise ArgumentError(f"{name} needs {switch}")
    if values.get("canny") and values["canny_low"] > values["canny_high"]:
        raise ArgumentError(
            f"canny_low must be at most canny_high, {values['canny_high']:g}, not {values['canny_low']:g}"
        )


def fit_control(values: dict[str, Any], size: tuple[int, int]) -> None:
    """Bring a control picture to the size that is drawn, and show its edges where they are asked for."""
    if values.get("control_image") is None:
        return
    image = fit(values["control_image"], size, values["resize_mode"], "control_image")
    if values["canny"]:
        from ..canny import find_edges

        image = find_edges(image, values["canny_low"], values["canny_high"])
    values["control_image"] = image
