"""What clients of A1111's web UI ask for, in our options; and what of it has no equal here, in words.

Names and defaults are those of its API: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...effects import adds_noise
from ...errors import ArgumentError
from ...modes import IMG2IMG, INPAINT, TXT2IMG
from ...options.checks import fold, show
from ...options.generation import SAMPLER_TITLES, SCHEDULER_TITLES
from ...parameters.names import (
    A1111_KARRAS,
    A1111_NEAREST_SAMPLERS,
    A1111_NEAREST_SCHEDULERS,
    A1111_SAMPLERS,
    A1111_SCHEDULERS,
)
from ...pictures import open_layers
from ..model_list import MODES, PICTURE_FORMATS
from .native_fields import from_fields, take_extra

RESIZE_MODES = ("resize", "crop", "pad", "resize")
"""Of ours, by the number of A1111's: just resize, crop and resize, resize and fill, and in latent space."""
_AUTOMATIC = ("automatic", "", "use same scheduler")
_ONLY_MASKED_PADDING = 32
_ORIGINAL = 1  # of inpainting_fill: the picture itself
_GRID = 8  # pixels that sides are multiples of; A1111 leaves out what is beyond
_SILENT = frozenset({
    "sampler_index", "do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards", "save_images",
    "send_images", "script_args", "include_init_images", "force_task_id", "inpainting_fill", "comments",
    "url", "auth",  # SillyTavern's own, of where it asks
})  # fmt: skip
"""What changes no picture here, or says nothing without another field."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "subseed": (-1, 0), "subseed_strength": (0,), "seed_resize_from_h": (0, -1), "seed_resize_from_w": (0, -1),
    "s_churn": (0,), "s_tmax": (0,), "s_tmin": (0,), "s_noise": (1,), "s_min_uncond": (0,), "tiling": (False,),
    "restore_faces": (False,), "styles": ([],), "script_name": ("", "None"), "hr_prompt": ("",),
    "hr_negative_prompt": ("",), "infotext": ("",), "disable_extra_networks": (False,), "firstphase_width": (0,),
    "firstphase_height": (0,), "hr_additional_modules": ([], ["Use same choices"]),
    "initial_noise_multiplier": (0, 1), "refiner_switch_at": (0,), "refiner_checkpoint": ("", "None"),
    "hr_checkpoint_name": ("", "Use same checkpoint"), "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"), "mask_round": (True,), "latent_mask": ("",),
}  # fmt: skip
"""Fields that have no equal here, with the values that ask for nothing."""
_NEUTRAL_IN_UNITS: Mapping[str, tuple[Any, ...]] = {
    "mask": ("",), "mask_image": ("",), "effective_region_mask": ("",), "guidance_start": (0,), "guidance_end": (1,),
    "control_mode": (0, "Balanced"), "hr_option": ("Both",),
}  # fmt: skip
"""Likewise of ControlNet's units."""


class Drawing(BaseModel):
    """What ``txt2img`` and ``img2img`` share. Other fields of A1111's are taken; those without effect are told of."""

    model_config = ConfigDict(extra="allow")

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int = Field(default=1, ge=1, le=1024)
    n_iter: int = Field(default=1, ge=1, le=1024)
    steps: int | None = None
    cfg_scale: float | None = None
    distilled_cfg_scale: float | None = Field(default=None, description="Forge's; guidance here")
    width: int | None = None
    height: int | None = None
    eta: float | None = None
    clip_skip: int | None = None
    denoising_strength: float | None = None
    override_settings: dict[str, Any] | None = None
    alwayson_scripts: dict[str, Any] | None = None
    lora: list[dict[str, Any]] | None = Field(default=None, description="as sd-server takes them")
    send_images: bool = True

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, given: Any) -> Any:
        """Return what is given: there null is taken for a field that is not."""
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given


class TextToImage(Drawing):
    """``txt2img``."""

    enable_hr: bool = False
    hr_scale: float | None = None
    hr_upscaler: str | None = None
    hr_second_pass_steps: int | None = None
    hr_resize_x: int | None = None
    hr_resize_y: int | None = None


class ImageToImage(Drawing):
    """``img2img``."""

    init_images: list[str] = Field(default_factory=list)
    mask: str | None = None
    mask_blur: int | None = None
    resize_mode: int = Field(default=0, ge=0, le=3)
    inpaint_full_res: bool | None = None
    inpaint_full_res_padding: int | None = None
    inpainting_mask_invert: int | bool | None = None
    inpainting_fill: int | None = None
    image_cfg_scale: float | None = None


@dataclass
class Wanted:
    """A request, in our words.

    Attributes:
        mode: name of the mode.
        options: of it.
        model: the model that it names; empty for none.
        output: format.
        notes: of what has no effect.
    """

    mode: str
    options: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    output: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _titled(*titles: Mapping[str, str]) -> dict[str, str]:
    """Return what titles mean, by how they are compared."""
    return {fold(title): each for table in titles for title, each in table.items()}


def sampler_of(name: str, known: list[str]) -> tuple[str, str | None, bool]:
    """Return the sampler and, of names as ``DPM++ 2M Karras``, the scheduler that A1111's name of a sampler means.

    Args:
        name: A1111's, or ours.
        known: the engine's samplers.

    Returns:
        The sampler, the scheduler or None, and whether that is the sampler itself: of one that is not here it is the
        nearest one.

    Raises:
        ArgumentError: there is none of this name.
    """
    own = _titled(A1111_SAMPLERS, {each: each for each in known})
    for titles in (own, _titled(A1111_NEAREST_SAMPLERS)):
        if (found := titles.get(fold(name))) is not None:
            return found, None, titles is own
        for title, scheduler in A1111_SCHEDULERS.items():
            if fold(name).endswith(f" {fold(title)}"):
                found = titles.get(fold(name)[: -len(title) - 1])
                if found is not None:
                    return found, scheduler, titles is own
    raise ArgumentError(f"sampler_name {show(name)} is unknown; valid: {', '.join(A1111_SAMPLERS)}")


def scheduler_of(name: str, sampler: str | None, known: list[str]) -> str | None:
    """Return the scheduler that A1111's name or label of one means, or the nearest; None for the engine's own.

    Raises:
        ArgumentError: there is none of this name.
    """
    if fold(name) in _AUTOMATIC:
        return "karras" if sampler in A1111_KARRAS else None
    found = _titled(A1111_NEAREST_SCHEDULERS, A1111_SCHEDULERS, {each: each for each in known})
    if fold(name) not in found:
        raise ArgumentError(f"scheduler {show(name)} is unknown; valid: {', '.join(['automatic', *known])}")
    return found[fold(name)]


def _sampling(body: Drawing, wanted: Wanted, names: Mapping[str, list[str]]) -> None:
    """Take what says how noise becomes a picture."""
    options = wanted.options
    asked = body.sampler_name or body.sampler_index
    scheduler = None
    is_it = True
    if asked:
        options["sampler"], scheduler, is_it = sampler_of(asked, names["sample_method"])
        if not is_it:
            title = SAMPLER_TITLES.get(options["sampler"], options["sampler"])
            wanted.notes.append(f"sampler {show(asked)} is not here; {title}, the nearest, draws")
    if scheduler is None and body.scheduler is not None:
        scheduler = scheduler_of(body.scheduler, options.get("sampler") if is_it else None, names["scheduler"])
        if fold(body.scheduler) in _titled(A1111_NEAREST_SCHEDULERS):
            title = SCHEDULER_TITLES.get(scheduler or "", scheduler)
            wanted.notes.append(f"scheduler {show(body.scheduler)} is not here; {title}, the nearest, is taken")
    if scheduler is not None:
        options["scheduler"] = scheduler
    # Clients send eta whatever the sampler; 1 and 0 are what samplers take anyway.
    sampler = options.get("sampler")
    if body.eta is not None and (sampler is not None or body.eta not in (0.0, 1.0)):
        if adds_noise(sampler or "euler_a"):
            options["eta"] = body.eta
        elif body.eta not in (0.0, 1.0):
            wanted.notes.append(f"eta has no effect with sampler {sampler}")


def _settings(body: Drawing, wanted: Wanted) -> None:
    """Take ``override_settings``."""
    skip = body.clip_skip
    for name, value in (body.override_settings or {}).items():
        if name == "sd_model_checkpoint" and value:
            wanted.model = str(value)
        elif name == "CLIP_stop_at_last_layers":
            skip = skip or _layers(value)
        elif name == "samples_format":
            wanted.output["format"] = _format(value)
        elif not (name == "sd_vae" and value in ("Automatic", "None", "", None)):
            wanted.notes.append(f"override_settings.{name} has no effect")
    if skip and skip > 1:
        wanted.options["clip_skip"] = skip


def _layers(value: Any) -> int | None:
    """Return what ``CLIP_stop_at_last_layers`` is, or raise ArgumentError; web forms send numbers as text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 4:
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ArgumentError(f"CLIP_stop_at_last_layers must be an integer, not {show(value)}")
    return value


def _format(value: Any) -> str:
    """Return what ``samples_format`` is, or raise ArgumentError."""
    known = "jpeg" if value == "jpg" else value
    if known not in PICTURE_FORMATS:
        raise ArgumentError(f"samples_format {show(value)} is unknown; valid: {', '.join(PICTURE_FORMATS)}")
    return str(known)


SETTINGS: Mapping[str, Callable[[Any], Any]] = {"CLIP_stop_at_last_layers": _layers, "samples_format": _format}
"""Settings besides the model's that have an effect, and what makes a value of what clients send."""


def _control(unit: Mapping[str, Any], wanted: Wanted) -> None:
    """Take a unit of ControlNet; without a picture of its own it looks at the one to begin with."""
    options = wanted.options
    picture = unit.get("image") or unit.get("input_image")
    picture = picture.get("image") if isinstance(picture, Mapping) else picture
    options["control_image"] = picture or options.get("image")
    if not options["control_image"]:
        del options["control_image"]
        wanted.notes.append("ControlNet: a unit without a picture has no effect")
        return
    options["control_strength"] = unit.get("weight", 1.0)
    options["resize_mode"] = options.get("resize_mode", "crop")
    module = str(unit.get("module") or "none").casefold()
    if "canny" in module:
        options["canny"] = True
        for name, key in (("canny_low", "threshold_a"), ("canny_high", "threshold_b")):
            level = unit.get(key)
            if isinstance(level, (int, float)) and level >= 0:  # below it stands for the default
                options[name] = level
    elif module != "none":
        wanted.notes.append(f"ControlNet: module {show(module)} is not here; the picture is looked at as it is")
    for name, neutral in _NEUTRAL_IN_UNITS.items():
        if unit.get(name) not in (None, *neutral):
            wanted.notes.append(f"ControlNet: {name} has no effect")


def _scripts(body: Drawing, wanted: Wanted) -> None:
    """Take the first unit of ControlNet, and say of other scripts that there are none."""
    for name, script in (body.alwayson_scripts or {}).items():
        units = (script.get("args") or []) if isinstance(script, Mapping) else []
        if not isinstance(units, (list, Mapping)):
            raise ArgumentError(f"alwayson_scripts.{name}.args must be a list, not {show(units)}")
        if name.casefold() == "controlnet":
            active = [unit for unit in units if isinstance(unit, Mapping) and unit.get("enabled", True)]
            if active:
                _control(active[0], wanted)
            if len(active) > 1:
                wanted.notes.append("ControlNet: one unit has an effect, the first")
        elif any(unit is True or isinstance(unit, Mapping) for unit in units):
            wanted.notes.append(f"alwayson_scripts.{name} has no effect")


def _fit_sides(wanted: Wanted) -> None:
    """Take sides that are no multiples of the grid as A1111 does, which leaves out what is beyond."""
    for name in ("width", "height"):
        side = wanted.options.get(name, 0)
        if side > _GRID and side % _GRID:
            wanted.options[name] = side - side % _GRID
            wanted.notes.append(f"{name} {side} is no multiple of {_GRID}: {side - side % _GRID} is drawn")


def _hires(body: TextToImage, wanted: Wanted) -> None:
    """Take the second pass."""
    hires: dict[str, Any] = {}
    latent = body.hr_upscaler or "Latent"
    if latent != "None":
        builtin = latent.startswith("Latent") or latent in ("Lanczos", "Nearest")
        hires["upscaler" if builtin else "model"] = latent
    if body.hr_resize_x or body.hr_resize_y:
        hires |= {"target_width": body.hr_resize_x or 0, "target_height": body.hr_resize_y or 0}
    elif body.hr_scale is not None:
        hires["scale"] = body.hr_scale
    if body.hr_second_pass_steps:
        hires["steps"] = body.hr_second_pass_steps
    if body.denoising_strength is not None:
        hires["denoising_strength"] = body.denoising_strength
    wanted.options["hires"] = hires


def _pictures(body: ImageToImage, wanted: Wanted) -> None:
    """Take the picture to begin with, and the mask."""
    options = wanted.options
    if not body.init_images:
        raise ArgumentError("init_images is missing: send a picture as base64 or as a data URL")
    if len(body.init_images) > 1:
        wanted.notes.append("init_images: one picture has an effect, the first")
    options["image"] = body.init_images[0]
    options["resize_mode"] = RESIZE_MODES[body.resize_mode]
    if body.denoising_strength is not None:
        options["strength"] = body.denoising_strength
    # 1.5 is what clients send whatever the model.
    if body.image_cfg_scale not in (None, 1.5):
        options["image_cfg_scale"] = body.image_cfg_scale
    if wanted.mode == INPAINT.name:
        options["mask"] = body.mask
        options["mask_blur"] = 4 if body.mask_blur is None else body.mask_blur
        options["invert"] = bool(body.inpainting_mask_invert)
        options["only_masked"] = body.inpaint_full_res is not False
        if body.inpainting_fill not in (None, _ORIGINAL):
            wanted.notes.append(
                f"inpainting_fill {body.inpainting_fill} has no effect: what is masked begins as it is, which is "
                f"{_ORIGINAL}"
            )
        if options["only_masked"]:
            padding = body.inpaint_full_res_padding
            options["padding"] = _ONLY_MASKED_PADDING if padding is None else padding


def take_mask(wanted: Wanted, data: bytes) -> None:
    """Take a mask, of one with transparency what is opaque in it, as clients paint them; a whole one masks nothing.

    Raises:
        ArgumentError: it is damaged.
    """
    mask = open_layers(data, "mask")
    if mask.mode in ("LA", "RGBA") and mask.getchannel("A").getextrema() != (255, 255):
        mask = mask.getchannel("A").point([0] * 128 + [255] * 128)
        buffer = io.BytesIO()
        mask.save(buffer, "PNG")
        data = buffer.getvalue()
    wanted.options["mask"] = data
    whole = 0 if wanted.options.get("invert") else 255
    if mask.convert("L").getextrema() == (whole, whole):
        wanted.mode = IMG2IMG.name
        for name in ("mask", "mask_blur", "invert", "only_masked", "padding"):
            wanted.options.pop(name, None)
        wanted.notes.append("mask: all of the picture is drawn anew, as without one")


def wanted_by(body: TextToImage | ImageToImage, facts: Mapping[str, Any]) -> Wanted:
    """Return what a request means.

    Args:
        body: it.
        facts: what a worker told of its engine.

    Raises:
        ArgumentError: a sampler or a scheduler is unknown, or there is no picture to begin with.
    """
    mode = TXT2IMG if isinstance(body, TextToImage) else INPAINT if body.mask else IMG2IMG
    wanted = Wanted(mode.name)
    prompt, extra = take_extra(body.prompt)
    given = {"prompt": prompt, "negative_prompt": body.negative_prompt, "seed": body.seed, "steps": body.steps,
             "cfg_scale": body.cfg_scale, "guidance": body.distilled_cfg_scale, "width": body.width,
             "height": body.height, "loras": body.lora}  # fmt: skip
    wanted.options = {name: value for name, value in given.items() if value not in (None, "", [])}
    wanted.options["prompt"] = prompt
    wanted.options["batch_count"] = body.batch_size * body.n_iter
    _fit_sides(wanted)
    _sampling(body, wanted, facts["names"])
    _settings(body, wanted)
    if isinstance(body, ImageToImage):
        _pictures(body, wanted)
    elif body.enable_hr:
        _hires(body, wanted)
    _scripts(body, wanted)
    same = {"hr_prompt": body.prompt, "hr_negative_prompt": body.negative_prompt, "hr_cfg": body.cfg_scale,
            "hr_distilled_cfg": body.distilled_cfg_scale}  # fmt: skip
    for name, value in (body.model_extra or {}).items():
        if name not in _SILENT and value not in (None, same.get(name), *_NEUTRAL.get(name, ())):
            wanted.notes.append(f"{name} has no effect")
    if extra:
        asked = from_fields(MODES[wanted.mode], extra, facts["defaults"].get("inpaint", {}))
        wanted.options |= asked.options
        wanted.output |= asked.output
        wanted.notes += asked.notes
    return wanted


def scheduler_label(name: str) -> str:
    """Return what A1111 shows for a scheduler."""
    return SCHEDULER_TITLES.get(name, name)
