"""What a caller may pass, as small frozen classes. Every field that is None keeps the engine's own default."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Union

from .errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

StrPath = Union[str, "os.PathLike[str]", bytes]

MAX_SIDE = 16384
MAX_STEPS = 10_000
MAX_BATCH = 1024
MAX_SEED = 2**63 - 1


def check_int(name: str, value: Any, low: int, high: int, hint: str = "") -> int:
    """Return value as int, or raise ArgumentError unless it is an integer in [low, high]."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ArgumentError(f"{name} must be an integer, not {value!r}")
    number = int(value.__index__())
    if not low <= number <= high:
        raise ArgumentError(f"{name} must be from {low} to {high}, not {number}{hint}")
    return number


def check_float(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return value as float, or raise ArgumentError unless it is a finite number in [low, high]."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} must be a number, not {value!r}") from None
    if not math.isfinite(number) or not low <= number <= high:
        bounds = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        raise ArgumentError(f"{name} must be a finite number{bounds}, not {number:g}")
    return number


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return value, or raise ArgumentError with the valid names unless it is one of them."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name} {value!r} is unknown; valid: {', '.join(choices)}")
    return value


def check_side(name: str, value: Any) -> int:
    """Return an image side in pixels, or raise ArgumentError unless it is a multiple of 8 in [8, 16384]."""
    side = check_int(name, value, 8, MAX_SIDE)
    if side % 8:
        raise ArgumentError(f"{name} must be a multiple of 8, not {side}; try {side // 8 * 8 or 8}")
    return side


def check_text(name: str, value: Any) -> str:
    """Return a text for the engine, or raise ArgumentError unless it is valid Unicode without NUL."""
    if not isinstance(value, str):
        raise ArgumentError(f"{name} must be a string, not {type(value).__name__}")
    if "\0" in value:
        raise ArgumentError(f"{name} must not hold a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ArgumentError(f"{name} is not valid Unicode text: {value!a}") from None
    return value


def given(option: Any) -> dict[str, Any]:
    """Return the fields of an option that are not None."""
    return {field.name: value for field in fields(option) if (value := getattr(option, field.name)) is not None}


@dataclass(frozen=True)
class Lora:
    """A LoRA to apply during one generation.

    Args:
        path: file of the LoRA, safetensors or GGUF.
        multiplier: its strength; 0 has no effect, 1 is the strength it was trained at.
        is_high_noise: apply it to the high-noise diffusion model, for families that have two.
    """

    path: StrPath
    multiplier: float = 1.0
    is_high_noise: bool = False

    def __post_init__(self) -> None:
        check_float("LoRA multiplier", self.multiplier, -100.0, 100.0)


@dataclass(frozen=True)
class Tiling:
    """Decode the latents in overlapping tiles, which needs less memory.

    Args:
        tile_size_x: tile width in latent pixels (an eighth of image pixels for most families).
        tile_size_y: tile height in latent pixels.
        target_overlap: overlap of neighbouring tiles as a fraction of a tile, 0 to 0.5.
        rel_size_x: tile width as a fraction of the image, instead of tile_size_x.
        rel_size_y: tile height as a fraction of the image, instead of tile_size_y.
    """

    tile_size_x: int | None = None
    tile_size_y: int | None = None
    target_overlap: float | None = None
    rel_size_x: float | None = None
    rel_size_y: float | None = None

    def __post_init__(self) -> None:
        for name in ("tile_size_x", "tile_size_y"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 0, MAX_SIDE)
        if self.target_overlap is not None:
            check_float("target_overlap", self.target_overlap, 0.0, 0.5)
        for name in ("rel_size_x", "rel_size_y"):
            if getattr(self, name) is not None:
                check_float(name, getattr(self, name), 0.0, MAX_SIDE)


@dataclass(frozen=True)
class Cache:
    """Skip parts of sampling steps whose result changes little.

    Args:
        mode: ``easycache``, ``ucache``, ``dbcache``, ``taylorseer``, ``cache_dit`` or ``spectrum``.
        reuse_threshold: largest change at which a result is used again (easycache, ucache).
        start_percent: fraction of the steps before caching starts, 0 to 1.
        end_percent: fraction of the steps after which caching ends, 0 to 1.
        error_decay_rate: how fast the accumulated error is forgotten (ucache).
        use_relative_threshold: compare relative instead of absolute change (ucache).
        reset_error_on_compute: start the error anew after a computed step (ucache).
        Fn_compute_blocks: first blocks that are always computed (dbcache).
        Bn_compute_blocks: last blocks that are always computed (dbcache).
        residual_diff_threshold: largest residual change at which blocks are skipped (dbcache).
        max_warmup_steps: first steps without caching (dbcache).
        max_cached_steps: most cached steps, -1 for no limit (dbcache).
        max_continuous_cached_steps: most cached steps in a row, -1 for no limit (dbcache).
        taylorseer_n_derivatives: order of the Taylor prediction (taylorseer).
        taylorseer_skip_interval: predicted steps between computed ones (taylorseer).
        scm_mask: comma-separated 1 (compute) and 0 (cache), a step each (dbcache).
        scm_policy_dynamic: let thresholds overrule the mask (dbcache).
        spectrum_w: weight of the predictor (spectrum).
        spectrum_m: number of basis functions (spectrum).
        spectrum_lam: ridge of the fit (spectrum).
        spectrum_window_size: steps between computed ones (spectrum).
        spectrum_flex_window: growth of that window (spectrum).
        spectrum_warmup_steps: first steps without prediction (spectrum).
        spectrum_stop_percent: fraction of the steps after which prediction ends (spectrum).
    """

    mode: str
    reuse_threshold: float | None = None
    start_percent: float | None = None
    end_percent: float | None = None
    error_decay_rate: float | None = None
    use_relative_threshold: bool | None = None
    reset_error_on_compute: bool | None = None
    Fn_compute_blocks: int | None = None
    Bn_compute_blocks: int | None = None
    residual_diff_threshold: float | None = None
    max_warmup_steps: int | None = None
    max_cached_steps: int | None = None
    max_continuous_cached_steps: int | None = None
    taylorseer_n_derivatives: int | None = None
    taylorseer_skip_interval: int | None = None
    scm_mask: str | None = None
    scm_policy_dynamic: bool | None = None
    spectrum_w: float | None = None
    spectrum_m: int | None = None
    spectrum_lam: float | None = None
    spectrum_window_size: int | None = None
    spectrum_flex_window: float | None = None
    spectrum_warmup_steps: int | None = None
    spectrum_stop_percent: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                check_float(field.name, value)
            elif isinstance(value, int):
                check_int(field.name, int(value), -1, 2**31 - 1)


@dataclass(frozen=True)
class SkipLayerGuidance:
    """Steer away from the result of a diffusion transformer without some of its layers.

    Args:
        layers: indices of the layers that are left out.
        scale: strength; 0 switches it off.
        layer_start: fraction of the steps at which it starts, 0 to 1.
        layer_end: fraction of the steps at which it ends, 0 to 1.
    """

    layers: Sequence[int]
    scale: float
    layer_start: float | None = None
    layer_end: float | None = None

    def __post_init__(self) -> None:
        for layer in self.layers:
            check_int("skipped layer", layer, 0, 10_000)
        check_float("scale", self.scale)
        for name in ("layer_start", "layer_end"):
            if getattr(self, name) is not None:
                check_float(name, getattr(self, name), 0.0, 1.0)


@dataclass(frozen=True)
class Hires:
    """Generate small, enlarge, and sample again at the larger size.

    Args:
        upscaler: ``latent`` and its variants, ``lanczos``, ``nearest``, or ``model``; see ``sdcpp_py.choices()``.
        model: file of the upscaler, for ``model``.
        scale: factor of enlargement.
        target_width: width in pixels instead of the scale.
        target_height: height in pixels instead of the scale.
        steps: sampling steps at the larger size; 0 takes those of the first pass.
        denoising_strength: how much of the first pass is drawn anew, above 0 to 1.
        upscale_tile_size: side of the upscaler's tiles in pixels.
    """

    upscaler: str | None = None
    model: StrPath | None = None
    scale: float | None = None
    target_width: int | None = None
    target_height: int | None = None
    steps: int | None = None
    denoising_strength: float | None = None
    upscale_tile_size: int | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            check_float("hires scale", self.scale, 0.01, 16.0)
        for name in ("target_width", "target_height"):
            if getattr(self, name):
                check_side(name, getattr(self, name))
        if self.steps is not None:
            check_int("hires steps", self.steps, 0, MAX_STEPS)
        if self.denoising_strength is not None:
            check_float("denoising_strength", self.denoising_strength, 0.0001, 1.0)
        if self.upscale_tile_size is not None:
            check_int("upscale_tile_size", self.upscale_tile_size, 16, MAX_SIDE)


@dataclass(frozen=True)
class PhotoMaker:
    """Pictures of the person to draw, for a model loaded with ``photo_maker``.

    Args:
        id_images: pictures of the person.
        id_embed: file of the embedding that PhotoMaker v2 needs.
        style_strength: 0 to 100; more style is less likeness.
    """

    id_images: Sequence[Image]
    id_embed: StrPath | None = None
    style_strength: float | None = None

    def __post_init__(self) -> None:
        if not self.id_images:
            raise ArgumentError("PhotoMaker needs at least one picture in id_images")
        if self.style_strength is not None:
            check_float("style_strength", self.style_strength, 0.0, 100.0)


def as_loras(loras: Sequence[Lora | StrPath] | Mapping[Any, float]) -> list[Lora]:
    """Return LoRAs given as Lora objects, paths, or a mapping of path to multiplier."""
    if isinstance(loras, Mapping):
        return [Lora(path, multiplier) for path, multiplier in loras.items()]
    if isinstance(loras, (str, bytes, os.PathLike, Lora)):
        loras = [loras]
    return [lora if isinstance(lora, Lora) else Lora(lora) for lora in loras]
