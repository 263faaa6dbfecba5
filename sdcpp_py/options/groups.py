"""The groups of options. A field that is None keeps the engine's own default."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ..errors import ArgumentError
from ..model_files import StrPath
from ..pictures import MAX_SIDE, PictureSource
from .checks import check_bool, fold, show
from .declare import Opt, Range, declared
from .group import Group
from .kinds import Portraits

MAX_STEPS = 10_000
DENOISING_STRENGTH = "Denoising strength"  # A1111's name for it in every mode
_INT_MAX = 2**31 - 1
_file = functools.partial(Opt, metavar="FILE")
_tiling = functools.partial(Opt, panel="Decoding")
_cache = functools.partial(Opt, panel="Caching")
_slg = functools.partial(Opt, panel="Guidance")
_hires = functools.partial(Opt, panel="Second pass")
_person = functools.partial(Opt, panel="Persons")


@dataclass(frozen=True)
class Tiling(Group):
    """Decode the latents in overlapping tiles, which needs less memory."""

    enabled = "enabled"
    expected = "True, False or a Tiling"

    tile_size_x: Annotated[
        int | None,
        Range(0, MAX_SIDE),
        _tiling(
            "tile width in latent pixels, an eighth of image pixels for most families",
            field="tile_size_x", flags="--vae-tile-size", metavar="N[xN]", png="VAE tile size",
            engine_default=32,
        ),
    ] = None  # fmt: skip
    tile_size_y: Annotated[
        int | None,
        Range(0, MAX_SIDE),
        _tiling("tile height, likewise", field="tile_size_y", flags="--vae-tile-size", png="VAE tile size"),
    ] = None
    target_overlap: Annotated[
        float | None,
        Range(0.0, 0.5),
        _tiling(
            "overlap of neighbouring tiles as a fraction of a tile",
            field="target_overlap", flags="--vae-tile-overlap", png="VAE tile overlap", engine_default=0.5,
        ),
    ] = None  # fmt: skip
    rel_size_x: Annotated[
        float | None,
        Range(0.0, float(MAX_SIDE)),
        _tiling(
            "tile width as a fraction of the image, or from 1 on the number of tiles, instead of tile_size_x",
            field="rel_size_x", flags="--vae-relative-tile-size", metavar="N[xN]", png="VAE relative tile size",
        ),
    ] = None  # fmt: skip
    rel_size_y: Annotated[
        float | None,
        Range(0.0, float(MAX_SIDE)),
        _tiling("tile height, likewise", field="rel_size_y", flags="--vae-relative-tile-size",
                png="VAE relative tile size"),
    ] = None  # fmt: skip

    def _check_together(self) -> None:
        for side in ("x", "y"):
            if getattr(self, f"tile_size_{side}") and getattr(self, f"rel_size_{side}"):
                raise ArgumentError(f"Tiling.tile_size_{side} has no effect with rel_size_{side}; give one of them")

    @classmethod
    def of(cls, value: Any) -> "Tiling | None":
        """Return the engine's own tiles for True, None for False."""
        try:
            return cls() if check_bool("tiling", value) else None
        except ArgumentError:
            raise TypeError from None


_EASY = ("easycache", "ucache")
_BLOCKS = ("dbcache", "taylorseer", "cache_dit")
_TAYLOR = ("taylorseer", "cache_dit")
_SPECTRUM = ("spectrum",)
_easy = functools.partial(_cache, flags="--cache-option", only=_EASY)
_blocks = functools.partial(_cache, flags="--cache-option", only=_BLOCKS)
_taylor = functools.partial(_cache, flags="--cache-option", only=_TAYLOR)
_spectrum = functools.partial(_cache, flags="--cache-option", only=_SPECTRUM)


@dataclass(frozen=True)
class Cache(Group):
    """Skip parts of sampling steps whose result changes little."""

    expected = "a caching mode or a Cache"

    mode: Annotated[str, _cache("what is cached", field="mode", flags="--cache-mode", choices="cache", png="Cache")]
    reuse_threshold: Annotated[
        float | None,
        Range(0.0, 1e6),
        _easy("largest change at which a result is used again", field="reuse_threshold", key="threshold",
              png="Cache threshold", engine_default="1 for ucache, 0.2 for easycache"),
    ] = None  # fmt: skip
    start_percent: Annotated[
        float | None,
        Range(0.0, 1.0),
        _easy("fraction of the steps before caching starts", field="start_percent", key="start", png="Cache start",
              engine_default=0.15),
    ] = None  # fmt: skip
    end_percent: Annotated[
        float | None,
        Range(0.0, 1.0),
        _easy("fraction of the steps after which caching ends", field="end_percent", key="end", png="Cache end",
              engine_default=0.95),
    ] = None  # fmt: skip
    error_decay_rate: Annotated[
        float | None,
        Range(0.0, 1.0),
        _easy("how fast the accumulated error is forgotten", field="error_decay_rate", key="decay", only=("ucache",),
              png="Cache decay", engine_default=1.0),
    ] = None  # fmt: skip
    use_relative_threshold: Annotated[
        bool | None,
        _easy("compare relative instead of absolute change", field="use_relative_threshold", key="relative",
              only=("ucache",), png="Cache relative", engine_default=True),
    ] = None  # fmt: skip
    reset_error_on_compute: Annotated[
        bool | None,
        _easy("start the error anew after a computed step", field="reset_error_on_compute", key="reset",
              only=("ucache",), png="Cache reset", engine_default=True),
    ] = None  # fmt: skip
    Fn_compute_blocks: Annotated[
        int | None,
        Range(0, 10_000),
        _blocks("first blocks that are always computed", field="Fn_compute_blocks", key="Fn", png="Cache Fn",
                engine_default=8),
    ] = None  # fmt: skip
    Bn_compute_blocks: Annotated[
        int | None,
        Range(0, 10_000),
        _blocks("last blocks that are always computed", field="Bn_compute_blocks", key="Bn", png="Cache Bn",
                engine_default=0),
    ] = None  # fmt: skip
    residual_diff_threshold: Annotated[
        float | None,
        Range(0.0, 1e6),
        _blocks("largest residual change at which blocks are skipped", field="residual_diff_threshold",
                key="threshold", png="Cache residual threshold", engine_default=0.08),
    ] = None  # fmt: skip
    max_warmup_steps: Annotated[
        int | None,
        Range(0, MAX_STEPS),
        _blocks("first steps without caching", field="max_warmup_steps", key="warmup", png="Cache warmup",
                engine_default=8),
    ] = None  # fmt: skip
    max_cached_steps: Annotated[
        int | None,
        Range(-1, MAX_STEPS),
        _blocks("most cached steps, -1 for no limit", field="max_cached_steps", key="max_cached",
                png="Cache most steps", engine_default=-1),
    ] = None  # fmt: skip
    max_continuous_cached_steps: Annotated[
        int | None,
        Range(-1, MAX_STEPS),
        _blocks("most cached steps in a row, -1 for no limit", field="max_continuous_cached_steps",
                key="max_continuous", png="Cache most steps in a row", engine_default=-1),
    ] = None  # fmt: skip
    taylorseer_n_derivatives: Annotated[
        int | None,
        Range(1, 100),
        _taylor("order of the Taylor prediction", field="taylorseer_n_derivatives", key="derivatives",
                png="Cache derivatives", engine_default=1),
    ] = None  # fmt: skip
    taylorseer_skip_interval: Annotated[
        int | None,
        Range(1, MAX_STEPS),
        _taylor("predicted steps between computed ones", field="taylorseer_skip_interval", key="interval",
                png="Cache interval", engine_default=1),
    ] = None  # fmt: skip
    scm_mask: Annotated[
        str | None,
        _cache("a step each: 1 computes, 0 may cache", field="scm_mask", flags="--scm-mask", only=_BLOCKS,
               pattern=r"[01](,[01])*", metavar="0,1,...", png="Cache mask"),
    ] = None  # fmt: skip
    scm_policy_dynamic: Annotated[
        bool | None,
        _cache("let thresholds overrule the mask", field="scm_policy_dynamic", flags="--scm-policy", only=_BLOCKS,
               words=("static", "dynamic"), png="Cache mask is dynamic", engine_default=True),
    ] = None  # fmt: skip
    spectrum_w: Annotated[
        float | None,
        Range(0.0, 1.0),
        _spectrum("weight of the predictor", field="spectrum_w", key="w", png="Spectrum w", engine_default=0.4),
    ] = None
    spectrum_m: Annotated[
        int | None,
        Range(1, 100),
        _spectrum("number of basis functions", field="spectrum_m", key="m", png="Spectrum m", engine_default=3),
    ] = None
    spectrum_lam: Annotated[
        float | None,
        Range(0.0, 1e6),
        _spectrum("ridge of the fit", field="spectrum_lam", key="lam", png="Spectrum lam", engine_default=1.0),
    ] = None
    spectrum_window_size: Annotated[
        int | None,
        Range(1, MAX_STEPS),
        _spectrum("steps between computed ones", field="spectrum_window_size", key="window", png="Spectrum window",
                  engine_default=2),
    ] = None  # fmt: skip
    spectrum_flex_window: Annotated[
        float | None,
        Range(0.0, 1000.0),
        _spectrum("growth of that window", field="spectrum_flex_window", key="flex", png="Spectrum flex",
                  engine_default=0.5),
    ] = None  # fmt: skip
    spectrum_warmup_steps: Annotated[
        int | None,
        Range(0, MAX_STEPS),
        _spectrum("first steps without prediction", field="spectrum_warmup_steps", key="warmup",
                  png="Spectrum warmup", engine_default=4),
    ] = None  # fmt: skip
    spectrum_stop_percent: Annotated[
        float | None,
        Range(0.0, 1.0),
        _spectrum("fraction of the steps after which prediction ends", field="spectrum_stop_percent", key="stop",
                  png="Spectrum stop", engine_default=0.9),
    ] = None  # fmt: skip

    @classmethod
    def of(cls, value: Any) -> "Cache":
        """Return the mode with the engine's own settings."""
        if not isinstance(value, str):
            raise TypeError
        return cls(value)

    def _check_together(self) -> None:
        fields = declared(Cache)
        for name in self.given():
            only = fields[name].opt.only
            if only and fold(self.mode) not in only:
                raise ArgumentError(f"Cache.{name} has no effect with mode {show(self.mode)}: {', '.join(only)}")
        if self.scm_policy_dynamic is not None and not self.scm_mask:
            raise ArgumentError("Cache.scm_policy_dynamic has no effect without scm_mask")
        start, end = (
            fields[name].opt.engine_default if (value := getattr(self, name)) is None else value
            for name in ("start_percent", "end_percent")
        )
        if fold(self.mode) in _EASY and start >= end:
            raise ArgumentError(f"Cache.start_percent {start:g} must be less than end_percent {end:g}")


@dataclass(frozen=True)
class SkipLayerGuidance(Group):
    """Steer away from the result of a diffusion transformer without some of its layers."""

    layers: Annotated[
        Sequence[int],
        Range(0, 10_000),
        _slg("indices of the layers that are left out", field="layers", flags="--skip-layers", png="Skip layers"),
    ]
    scale: Annotated[
        float,
        Range(-1000.0, 1000.0),
        _slg("strength; 0 switches it off", field="scale", flags="--slg-scale", png="SLG scale"),
    ]
    layer_start: Annotated[
        float | None,
        Range(0.0, 1.0),
        _slg("fraction of the steps at which it starts", field="layer_start", flags="--skip-layer-start",
             png="SLG start", always=True, engine_default=0.01),
    ] = None  # fmt: skip
    layer_end: Annotated[
        float | None,
        Range(0.0, 1.0),
        _slg("fraction of the steps at which it ends", field="layer_end", flags="--skip-layer-end", png="SLG end",
             always=True, engine_default=0.2),
    ] = None  # fmt: skip

    def _check_together(self) -> None:
        if not self.layers:
            raise ArgumentError("SkipLayerGuidance.layers needs at least one layer")


@dataclass(frozen=True)
class Hires(Group):
    """Generate small, enlarge, and sample again at the larger size."""

    enabled = "enabled"
    by_flag = "scale"

    upscaler: Annotated[
        str | None,
        _hires("how to enlarge: in latent space, or with the VAE's encoder, which is loaded then",
               field="upscaler", flags="--hires-upscaler", choices="upscaler", without=("None",),
               png="Hires upscaler", always=True, engine_default="Latent, or Model where one is given"),
    ] = None  # fmt: skip
    model: Annotated[
        StrPath | None,
        _hires("file of an upscaler's model", field="model_path", flags="--hires-model", metavar="FILE",
               png="Hires model", label="hires.model"),
    ] = None  # fmt: skip
    scale: Annotated[
        float | None,
        Range(0.01, 16.0),
        _hires("factor of enlargement", field="scale", flags="--hires-scale", png="Hires upscale", always=True,
               engine_default=2.0),
    ] = None  # fmt: skip
    target_width: Annotated[
        int | None,
        Range(0, MAX_SIDE, 8),
        _hires("width in pixels instead of the scale; 0 for none", field="target_width", flags="--hires-width",
               png="Hires resize"),
    ] = None  # fmt: skip
    target_height: Annotated[
        int | None,
        Range(0, MAX_SIDE, 8),
        _hires("height, likewise", field="target_height", flags="--hires-height", png="Hires resize"),
    ] = None
    steps: Annotated[
        int | None,
        Range(0, MAX_STEPS),
        _hires("sampling steps at the larger size; 0 for those of the first pass", field="steps",
               flags="--hires-steps", png="Hires steps", always=True, engine_default=0),
    ] = None  # fmt: skip
    denoising_strength: Annotated[
        float | None,
        Range(0.0001, 1.0),
        _hires("how much of the first pass is drawn anew", field="denoising_strength",
               flags="--hires-denoising-strength", png=DENOISING_STRENGTH, always=True, engine_default=0.7),
    ] = None  # fmt: skip
    upscale_tile_size: Annotated[
        int | None,
        Range(16, MAX_SIDE),
        _hires("side of the upscaler model's tiles in pixels", field="upscale_tile_size",
               flags="--hires-upscale-tile-size", png="Hires tile size", engine_default=128),
    ] = None  # fmt: skip

    def _check_together(self) -> None:
        named = "" if self.upscaler is None else fold(self.upscaler)
        if self.model is not None and not named:
            object.__setattr__(self, "upscaler", "Model")
        elif self.model is not None and named != "model":
            raise ArgumentError(f"Hires.model has no effect with upscaler {show(self.upscaler)}; use Model")
        elif named == "model" and self.model is None:
            raise ArgumentError("Hires.upscaler Model needs a model")
        if self.upscale_tile_size is not None and self.model is None:
            raise ArgumentError("Hires.upscale_tile_size has no effect without a model")
        if self.scale is not None and (self.target_width or self.target_height):
            raise ArgumentError("Hires.scale has no effect with target_width or target_height; give one of them")

    def without(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that are not None, but for those that some others take the place of."""
        given = self.given()
        sizes, ways = ("target_width", "target_height"), ("upscaler", "model")
        for these, others in (((*sizes,), ("scale",)), (("scale",), (*sizes,)), ((*ways,), (*ways,))):
            if any(fields.get(name) for name in these):
                given = {name: value for name, value in given.items() if name not in others}
        return given

    def settle(self, used: dict[str, Any], around: Mapping[str, Any]) -> None:
        """Note one of size and scale, and the steps that are taken."""
        if self.target_width or self.target_height:
            del used["scale"]
            # One side given means a square.
            used["target_width"] = self.target_width or self.target_height
            used["target_height"] = self.target_height or self.target_width
        else:
            used.pop("target_width", None)
            used.pop("target_height", None)
        used["steps"] = used["steps"] or around["steps"]

    @property
    def needs_encoder(self) -> bool:
        """Whether the VAE must encode: whatever does not enlarge in latent space."""
        return self.upscaler is not None and not fold(self.upscaler).startswith("latent")


@dataclass(frozen=True)
class PhotoMaker(Group):
    """Pictures of the person to draw, for a model loaded with ``photo_maker``."""

    expected = "a PhotoMaker, or pictures of a person"

    id_images: Annotated[
        PictureSource | Sequence[PictureSource],
        _person("pictures of the person, one or several, or a folder of them", field="id_images",
                flags="--pm-id-images-dir", kind=Portraits(), flag_doc="folder of pictures of the person"),
    ]  # fmt: skip
    id_embed: Annotated[
        StrPath | None,
        _person("file of the embedding that PhotoMaker v2 needs", field="id_embed_path", flags="--pm-id-embed-path",
                metavar="FILE", label="id_embed"),
    ] = None  # fmt: skip
    style_strength: Annotated[
        float | None,
        Range(0.0, 100.0),
        _person("strength of the style; more is less likeness", field="style_strength", flags="--pm-style-strength",
                png="PhotoMaker style strength", always=True, engine_default=20.0),
    ] = None  # fmt: skip

    @classmethod
    def of(cls, value: Any) -> "PhotoMaker":
        """Return pictures with the engine's own settings."""
        try:
            return cls(value)
        except ArgumentError:
            if isinstance(value, (str, bytes, Sequence, os.PathLike)):
                raise
            raise TypeError from None
