"""Turn what a caller asks of one generation into the engine's fields, checked before the engine sees any of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import engine
from . import options as check
from ._version import __version__
from .errors import ArgumentError
from .images import to_pixels
from .model_files import check_model_file, show_path
from .options import Cache, Hires, Lora, PhotoMaker, SkipLayerGuidance, StrPath, Tiling

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Request:
    """One generation, ready for the engine.

    Attributes:
        settings: the engine's fields, nested as they are there.
        parameters: what travels in the picture's file; the model and its own defaults are not known here.
        seeds: of each image.
        size: as asked for, ``WIDTHxHEIGHT``.
        loras: path (bytes), multiplier and is_high_noise, each.
        sigmas: noise levels, or empty.
        skip_layers: layers for skip layer guidance.
        control_image: uint8 array of shape (height, width, 3), or None.
        id_images: such arrays.
    """

    settings: dict[str, Any]
    parameters: dict[str, Any]
    seeds: list[int]
    size: str
    loras: list[dict[str, Any]]
    sigmas: list[float]
    skip_layers: Sequence[int]
    control_image: Any
    id_images: list[Any]

    @classmethod
    def txt2img(
        cls,
        prompt: str,
        *,
        negative_prompt: str = "",
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        cfg_scale: float | None = None,
        seed: int = -1,
        batch_count: int = 1,
        sampler: str | None = None,
        scheduler: str | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float | None = None,
        clip_skip: int | None = None,
        guidance: float | None = None,
        image_cfg_scale: float | None = None,
        skip_layer_guidance: SkipLayerGuidance | None = None,
        flow_shift: float | None = None,
        shifted_timestep: int | None = None,
        vae_tiling: bool | Tiling = False,
        cache: str | Cache | None = None,
        loras: Sequence[Lora | StrPath] | Mapping[Any, float] = (),
        hires: Hires | None = None,
        control_image: Image | None = None,
        control_strength: float | None = None,
        photo_maker: PhotoMaker | None = None,
    ) -> Request:
        """Return the request of ``StableDiffusion.txt2img``, which documents the arguments.

        Raises:
            ArgumentError: a value is unknown or out of range; the message lists what is valid.
            ModelError: a file that it names is missing or damaged.
        """
        defaults = engine.image_defaults()
        width = check.check_side("width", defaults["width"] if width is None else width)
        height = check.check_side("height", defaults["height"] if height is None else height)
        steps = check.check_int("steps", defaults["steps"] if steps is None else steps, 1, check.MAX_STEPS)
        cfg_scale = check.check_float("cfg_scale", defaults["cfg_scale"] if cfg_scale is None else cfg_scale, -100, 100)
        batch_count = check.check_int("batch_count", batch_count, 1, check.MAX_BATCH)
        seed = check.check_int("seed", seed, -1, check.MAX_SEED - batch_count + 1, "; -1 draws one")
        if seed == -1:
            seed = int.from_bytes(os.urandom(4), "little")
        if sampler is not None:
            check.check_choice("sampler", sampler, engine.enum_names("sample_method"))
        if scheduler is not None:
            check.check_choice("scheduler", scheduler, engine.enum_names("scheduler"))
        levels = _sigmas(sigmas)
        if levels:
            steps = len(levels) - 1
        slg = {} if skip_layer_guidance is None else check.given(skip_layer_guidance)
        skip_layers = slg.pop("layers", ())
        if control_strength is not None and control_image is None:
            raise ArgumentError("control_strength needs a control_image")
        applied = check.as_loras(loras)
        settings = {
            "prompt": check.check_text("prompt", prompt),
            "negative_prompt": check.check_text("negative_prompt", negative_prompt),
            "clip_skip": _optional(check.check_int, "clip_skip", clip_skip, -1, 100),
            "width": width,
            "height": height,
            "seed": seed,
            "batch_count": batch_count,
            "control_strength": _optional(check.check_float, "control_strength", control_strength, 0.0, 100.0),
            "sample_params": {
                "sample_method": sampler,
                "scheduler": scheduler,
                "sample_steps": steps,
                "eta": _optional(check.check_float, "eta", eta, 0.0, 10.0),
                "flow_shift": _optional(check.check_float, "flow_shift", flow_shift, 0.0, 1000.0),
                "shifted_timestep": _optional(check.check_int, "shifted_timestep", shifted_timestep, 0, 1000),
                "guidance": {
                    "txt_cfg": cfg_scale,
                    "img_cfg": _optional(check.check_float, "image_cfg_scale", image_cfg_scale),
                    "distilled_guidance": _optional(check.check_float, "guidance", guidance, 0.0, 1000.0),
                    "slg": slg,
                },
            },
            "vae_tiling_params": _tiling(vae_tiling),
            "cache": _cache(cache),
            "hires": _hires(hires),
            "pm_params": {} if photo_maker is None else _photo_maker(photo_maker),
        }
        names = [os.path.splitext(os.path.basename(show_path(lora.path)))[0] for lora in applied]
        used = [f"{name}: {lora.multiplier:g}" for name, lora in zip(names, applied, strict=True)]
        parameters = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "steps": steps,
            "sampler": sampler,
            "scheduler": scheduler,
            "cfg_scale": cfg_scale,
            "Clip skip": clip_skip,
            "Guidance": guidance,
            "Eta": eta,
            "Flow shift": flow_shift,
            "Cache": settings["cache"] and (cache.mode if isinstance(cache, Cache) else cache),
            "Lora": ", ".join(used),
            "Version": f"sdcpp-py {__version__}",
        }
        return cls(
            settings=_without_none(settings),
            parameters={name: value for name, value in parameters.items() if value not in (None, "", {})},
            seeds=[seed + index for index in range(batch_count)],
            size=f"{width}x{height}",
            loras=[
                {
                    "path": check_model_file(lora.path, "LoRA"),
                    "multiplier": float(lora.multiplier),
                    "is_high_noise": lora.is_high_noise,
                }
                for lora in applied
            ],
            sigmas=levels,
            skip_layers=skip_layers,
            control_image=None if control_image is None else to_pixels(control_image, "control_image"),
            id_images=[to_pixels(image, "id_images") for image in (photo_maker.id_images if photo_maker else ())],
        )


TXT2IMG_OPTIONS = frozenset(Request.txt2img.__func__.__kwdefaults__)  # type: ignore[attr-defined]


def _optional(function: Any, name: str, value: Any, *bounds: float) -> Any:
    """Return the checked value, or None for None."""
    return None if value is None else function(name, value, *bounds)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are not None, in nested mappings too."""
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None
    }


def _sigmas(sigmas: Sequence[float] | None) -> list[float]:
    """Return noise levels, checked."""
    if sigmas is None:
        return []
    levels = [check.check_float("sigma", sigma, 0.0) for sigma in sigmas]
    if len(levels) < 2:
        raise ArgumentError("sigmas needs at least two noise levels, usually ending in 0")
    if levels != sorted(levels, reverse=True):
        raise ArgumentError("sigmas must descend")
    return levels


def _tiling(tiling: bool | Tiling) -> dict[str, Any]:
    """Return the engine's fields for tiled decoding."""
    if tiling is False:
        return {}
    return {"enabled": True, **({} if tiling is True else check.given(tiling))}


def _cache(cache: str | Cache | None) -> dict[str, Any]:
    """Return the engine's fields for a caching mode."""
    if cache is None:
        return {}
    fields = check.given(Cache(cache) if isinstance(cache, str) else cache)
    mode = check.check_choice("cache mode", fields["mode"], engine.enum_names("cache"))
    return {**fields, "mode": engine.cache_mode(mode)}


def _hires(hires: Hires | None) -> dict[str, Any]:
    """Return the engine's fields for a second pass at a larger size."""
    if hires is None:
        return {}
    fields = check.given(hires)
    if "upscaler" in fields:
        check.check_choice("hires upscaler", fields["upscaler"], engine.enum_names("upscaler"))
    if "model" in fields:
        fields["model_path"] = check_model_file(fields.pop("model"), "hires model")
    return {"enabled": True, **fields}


def _photo_maker(photo_maker: PhotoMaker) -> dict[str, Any]:
    """Return the engine's fields for pictures of a person, without the pictures."""
    embed = photo_maker.id_embed
    return {
        "id_embed_path": None if embed is None else check_model_file(embed, "id_embed"),
        "style_strength": photo_maker.style_strength,
    }
