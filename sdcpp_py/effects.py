"""Options that would do nothing on the model at hand: each is an error, for nothing asked is silently not done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ArgumentError

Values = Mapping[str, Any]
Traits = Mapping[str, Any]

_NOISY_SAMPLERS = ("euler_a", "dpm++2s_a", "res_multistep", "res_2s", "er_sde", "ddim_trailing", "tcd")
_OF_UNETS = ("ucache",)
_OF_TRANSFORMERS = ("easycache", "dbcache", "taylorseer", "cache_dit")
_FLOW_PREDICTIONS = ("sd3_flow", "flux_flow", "flux2_flow", "flow")


@dataclass(frozen=True)
class Effect:
    """When an option does something.

    Attributes:
        asks: whether a value asks for anything.
        does: whether it has an effect on a model with these traits, beside the other values.
        needs: what it needs, for the message.
    """

    asks: Callable[[Any], bool]
    does: Callable[[Traits, Values], bool]
    needs: str


def _set(value: Any) -> bool:
    return value is not None


def _on(value: Any) -> bool:
    return bool(value)


def _is_flow(traits: Traits, values: Values) -> bool:
    prediction = values.get("prediction")
    return prediction in _FLOW_PREDICTIONS if prediction else not traits["unet"]


GENERATION = {
    "guidance": Effect(
        _set, lambda traits, _: traits["distilled_guidance"], "a model that takes distilled guidance, such as Flux dev"
    ),
    "clip_skip": Effect(
        lambda value: value is not None and value > 0,
        lambda traits, _: traits["clip_tokens"],
        "a model that reads the tokens of a CLIP text encoder",
    ),
    "flow_shift": Effect(_set, _is_flow, "a flow model"),
    "shifted_timestep": Effect(_on, lambda traits, _: traits["sdxl"], "an SDXL model"),
    "eta": Effect(
        _on,
        lambda _, values: values["sampler"] in _NOISY_SAMPLERS,
        f"a sampler that adds noise: {', '.join(_NOISY_SAMPLERS)}",
    ),
    "high_noise_eta": Effect(
        _on,
        lambda _, values: values["high_noise_sampler"] in _NOISY_SAMPLERS,
        f"a high_noise_sampler that adds noise: {', '.join(_NOISY_SAMPLERS)}",
    ),
    "skip_layer_guidance": Effect(
        _set, lambda traits, _: traits["skippable_layers"] > 0, "a model whose layers can be skipped: SD 3 or Flux"
    ),
}
"""Options of drawing."""

LOADING = {
    "chroma_use_dit_mask": Effect(_set, lambda traits, _: traits["chroma"], "a Chroma model"),
    "chroma_use_t5_mask": Effect(_set, lambda traits, _: traits["chroma"], "a Chroma model"),
    "chroma_t5_mask_pad": Effect(_set, lambda traits, _: traits["chroma"], "a Chroma model"),
    "qwen_image_zero_cond_t": Effect(_set, lambda traits, _: traits["qwen_image"], "a Qwen-Image model"),
    "force_sdxl_vae_conv_scale": Effect(_on, lambda traits, _: traits["sdxl"], "an SDXL model"),
    "tae_preview_only": Effect(_on, lambda _, values: values["taesd"] is not None, "taesd="),
    "photo_maker": Effect(_set, lambda traits, _: traits["sdxl"], "an SDXL model"),
}
"""Options of loading."""


def adds_noise(sampler: str) -> bool:
    """Tell whether a sampler adds noise, so that what makes its noise shows."""
    return sampler in _NOISY_SAMPLERS


def idle(name: str, reason: str) -> ArgumentError:
    """Return the error of an option that would do nothing."""
    error = ArgumentError(f"{name} has no effect: {reason}")
    error.idle = name
    return error


def check_effects(effects: Mapping[str, Effect], values: Values, traits: Traits) -> None:
    """Raise ArgumentError for an option that would do nothing.

    Args:
        effects: the options to look at.
        values: what was asked for, None where nothing was.
        traits: of the model: the fields of sdcpp_traits_t.
    """
    for name, effect in effects.items():
        if effect.asks(values.get(name)) and not effect.does(traits, values):
            raise idle(name, f"it needs {effect.needs}, and this model is {traits['family']}")


def check_generation(values: Values, traits: Traits) -> None:
    """Raise ArgumentError for an option of drawing that would do nothing on this model.

    Args:
        values: every option's resolved value; ``sampler`` is the one that is taken, ``prediction`` that of loading.
        traits: of the model.
    """
    check_effects(GENERATION, values, traits)
    scale = values.get("image_cfg_scale")
    if scale is not None and not traits["image_guidance"] and scale != values.get("cfg_scale"):
        needs = "a model that is guided by a picture (inpainting, Instruct-Pix2Pix)"
        raise idle("image_cfg_scale", f"it needs {needs}, and this model is {traits['family']}")
    guidance = values.get("skip_layer_guidance")
    if guidance is not None and not guidance.scale:
        return
    wrong = [] if guidance is None else [each for each in guidance.layers if each >= traits["skippable_layers"]]
    if wrong:
        raise ArgumentError(
            f"skip_layer_guidance: there is no layer {wrong[0]}; this model has {traits['skippable_layers']}, from 0"
        )
    cache = values.get("cache")
    if cache is not None and cache.mode in (_OF_TRANSFORMERS if traits["unet"] else _OF_UNETS):
        kind, other = ("a UNet", "transformers") if traits["unet"] else ("a transformer", "UNets")
        raise ArgumentError(f"cache: {cache.mode} has no effect: it is for {other}, and this model is {kind}")
