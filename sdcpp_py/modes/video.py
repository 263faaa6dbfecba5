"""Videos from a text, and from a picture and a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import engine
from ..engine.fields import VIDEO
from ..errors import ArgumentError
from ..options.filming import FRAMES, Film, FirstFrame, Following, HighNoise, LastFrame
from ..options.generation import (
    Decoding,
    Fitting,
    Previewing,
    Prompting,
    Sampling,
    Sides,
    Steering,
    Subject,
    Watching,
)
from ..pictures import fit
from .inputs import Abilities, Prepared, aligned, size_from
from .mode import Mode

ANY_MODEL = Abilities(
    size_multiple=16, draws_videos=True, frame_step=4, takes_first_frame=True, takes_last_frame=True,
    takes_control_frames=True, is_pair=True,
)  # fmt: skip
"""What some model is able to do, for checks before one is loaded."""
_OF_PAIRS = tuple(HighNoise.__annotations__)
_SHARED = {"high_noise_eta": "eta", "high_noise_sampler": "sampler", "high_noise_cfg_scale": "cfg_scale"}
"""What the high-noise model has of the other one where nothing is asked for; eta with the sampler."""


class Txt2VidOptions(
    Prompting,
    Film,
    Sampling,
    Sides,
    Steering,
    HighNoise,
    Following,
    Fitting,
    Decoding,
    Previewing,
    Watching,
    total=False,
):
    """Every option of :meth:`sdcpp_py.StableDiffusion.txt2vid` besides the prompt."""


class Img2VidOptions(
    Prompting, Film, LastFrame, Sampling, Sides, Fitting, Steering, HighNoise, Following, Decoding, Previewing,
    Watching, total=False,
):  # fmt: skip
    """Every option of :meth:`sdcpp_py.StableDiffusion.img2vid` besides the prompt and the picture."""


def _check_model(values: Mapping[str, Any], able: Abilities) -> None:
    """Raise ArgumentError for what would do nothing with the model at hand."""
    begins = values.get("image") is not None
    if able.needs_first_frame and not begins:
        raise ArgumentError("this model goes on from a picture; call img2vid with one")
    if begins and not (able.takes_first_frame or able.takes_reference):
        raise ArgumentError("this model draws from a text alone; call txt2vid, or load one that takes a picture (I2V)")
    if values.get("end_image") is not None and not able.takes_last_frame:
        raise ArgumentError("end_image has no effect: it needs a model that takes a last frame (I2V, FLF2V)")
    for name in ("control_frames", "vace_strength"):
        if values[name] is not None and not able.takes_control_frames:
            raise ArgumentError(f"{name} has no effect: it needs a VACE model")
    high = [name for name in _OF_PAIRS if values[name] is not None]
    if high and not able.is_pair:
        raise ArgumentError(f"{high[0]} has no effect: it needs high_noise_diffusion_model=... when loading the model")
    if values["moe_boundary"] is not None and values["high_noise_steps"] is not None:
        raise ArgumentError("moe_boundary has no effect with high_noise_steps; give one of them")
    if not able.is_pair and any(lora.is_high_noise for lora in values["loras"]):
        raise ArgumentError("loras: is_high_noise needs high_noise_diffusion_model=... when loading the model")


def frame_count(asked: int | None, shown: int, step: int) -> int:
    """Return how many frames are drawn.

    Args:
        asked: number of frames; None for as many as control frames, or FRAMES.
        shown: number of control frames.
        step: frames are one more than a multiple of it.

    Raises:
        ArgumentError: the number is none that the model draws, or less than there are control frames.
    """
    if asked is None:
        return (shown - 1) // step * step + 1 if shown else FRAMES
    if (asked - 1) % step:
        less = (asked - 1) // step * step + 1
        what = f"one more than a multiple of {step}"
        raise ArgumentError(f"frames must be {what} for this model, not {asked}; try {less} or {less + step}")
    if shown > asked:
        raise ArgumentError(f"control_frames has {shown} pictures, and {asked} frames are drawn; give as many at most")
    return asked


def _share_steps(values: dict[str, Any], able: Abilities) -> None:
    """Say what each of a pair of models draws."""
    if not able.is_pair:
        return
    own_sampler = values["high_noise_sampler"] is not None
    for name, other in _SHARED.items():
        if values[name] is None and not (name == "high_noise_eta" and own_sampler):
            values[name] = values[other]
    if values["high_noise_steps"] is None:
        if values["moe_boundary"] is None:
            values["moe_boundary"] = engine.fields.defaults(VIDEO)["moe_boundary"]
    elif values["sigmas"]:
        values["steps"] -= values["high_noise_steps"]  # noise levels are those of both
        if values["steps"] < 1:
            raise ArgumentError("high_noise_steps leaves no step of sigmas to the low-noise model; make it less")


def prepare(values: dict[str, Any], able: Abilities) -> Prepared:
    """Bring the pictures to the size that is drawn, and say how many frames that are."""
    _check_model(values, able)
    image, shown = values.get("image"), values["control_frames"] or ()
    size = aligned(values, able) if image is None else size_from(image, values, able, "image")
    warnings = []
    asked = values["width"], values["height"]
    if all(asked) and asked != size:
        warnings.append("{}x{} is no size for this model; {}x{} is drawn".format(*asked, *size))
    values["width"], values["height"] = size
    for name in ("image", "end_image"):
        if values.get(name) is not None:
            values[name] = fit(values[name], size, values["resize_mode"], name)
    count = values["frames"] = frame_count(values["frames"], len(shown), able.frame_step)
    if len(shown) > count:
        warnings.append(f"frames is {count}: of {len(shown)} control_frames the last {len(shown) - count} go out")
    if shown:
        each = enumerate(shown[:count])
        values["control_frames"] = [
            fit(one, size, values["resize_mode"], f"control_frames[{index}]") for index, one in each
        ]
    _share_steps(values, able)
    return Prepared(warnings=warnings)


TXT2VID = Mode("txt2vid", "Draw a video from a text.", Subject, Txt2VidOptions, VIDEO, prepare)
IMG2VID = Mode("img2vid", "Draw a video from a picture.", FirstFrame, Img2VidOptions, VIDEO, prepare, takes_size=True)
