"""Requests in the engine's own fields, as sd-server takes them: nested objects to our options.

The mapping is that of the declarations: each option names its field. Here is only what sd-server has otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...effects import GENERATION, adds_noise
from ...errors import ArgumentError
from ...modes import EDIT, IMG2IMG, IMG2VID, INPAINT, TXT2IMG, TXT2VID, Mode
from ...options import Cache
from ...options.checks import show
from ...options.declare import Option, declared
from ...options.group import Grouped
from ...options.kinds import Integer, Number, Picture, Switch

_EXTRA, _EXTRA_END = "<sd_cpp_extra_args>", "</sd_cpp_extra_args>"
_OUTPUT = {"output_format": "format", "output_compression": "compression", "embed_image_metadata": "metadata"}
_CACHE = {"cache_mode": "mode", "scm_mask": "scm_mask", "scm_policy_dynamic": "scm_policy_dynamic"}


@dataclass
class Asked:
    """What a request means.

    Attributes:
        options: of the mode.
        output: format, compression and metadata.
        notes: of fields that have no equal here.
    """

    options: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def take_extra(prompt: str) -> tuple[str, dict[str, Any]]:
    """Return a prompt without ``<sd_cpp_extra_args>``, and the object in it.

    Raises:
        ArgumentError: what is in it is no JSON object.
    """
    found: dict[str, Any] = {}
    kept, at = [], 0
    while (begin := prompt.find(_EXTRA, at)) >= 0 and (end := prompt.find(_EXTRA_END, begin)) >= 0:
        kept.append(prompt[at:begin])
        at = end + len(_EXTRA_END)
        try:
            made = json.loads(prompt[begin + len(_EXTRA) : end])
        except ValueError as error:
            raise ArgumentError(f"sd_cpp_extra_args is no JSON ({error})") from None
        if not isinstance(made, dict):
            raise ArgumentError(f"sd_cpp_extra_args must be a JSON object, not {show(made)}")
        found |= made
    return "".join([*kept, prompt[at:]]).strip(), found


def mode_of_images(body: Mapping[str, Any]) -> Mode:
    """Return the mode of a request for pictures, by the pictures that go in."""
    if body.get("init_image"):
        return INPAINT if body.get("mask_image") else IMG2IMG
    return EDIT if body.get("ref_images") else TXT2IMG


def mode_of_video(body: Mapping[str, Any]) -> Mode:
    """Return the mode of a request for a video."""
    return IMG2VID if body.get("init_image") else TXT2VID


def _leaves(body: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each field."""
    for name, value in body.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _paths(options: Mapping[str, Option]) -> dict[str, tuple[str, ...]]:
    """Return where the engine's fields lead: path -> names of the option, and of the field of a group."""
    found: dict[str, tuple[str, ...]] = {}
    for name, option in options.items():
        if isinstance(option.kind, Grouped):
            for key, inner in declared(option.kind.owner).items():
                found[f"{option.opt.field}.{inner.opt.field}"] = (name, key)
            if option.kind.owner.enabled:
                found[f"{option.opt.field}.{option.kind.owner.enabled}"] = (name, "")
        elif option.opt.field:
            found[option.opt.field] = (name,)
    return found


def _cache(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the options of caching, which sd-server has at the top; None for none.

    Raises:
        ArgumentError: ``cache_option`` is not KEY=VALUE,...
    """
    if body.get("cache_mode") in (None, "", "disabled"):
        return None
    made = {key: body[name] for name, key in _CACHE.items() if body.get(name) not in (None, "")}
    if "scm_mask" not in made:
        made.pop("scm_policy_dynamic", None)  # which says something of the mask alone
    fields = declared(Cache)
    for part in filter(None, str(body.get("cache_option") or "").split(",")):
        key, equals, value = part.partition("=")
        fitting = [name for name, each in fields.items() if key == each.opt.key and made["mode"] in each.opt.only]
        if not equals or not fitting:
            raise ArgumentError(f"cache_option: {show(part)} is no KEY=VALUE of {made['mode']}")
        made[fitting[0]] = fields[fitting[0]].kind.read(value, fields[fitting[0]])
    return made


def _is_nothing(path: str, value: Any) -> bool:
    """Tell whether a value says nothing: clients send whole objects, with what stands for no value in them."""
    return value is None or value in ("", []) or (path.endswith("sample_steps") and value == -1)


def from_fields(mode: Mode, body: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Asked:
    """Return what a request means.

    Args:
        mode: its mode.
        body: the engine's fields, nested.
        defaults: the engine's own, by option of any mode; these are not worth a word where they have no effect.

    Raises:
        ArgumentError: ``cache_option`` is none, or ``lora`` is no list.
    """
    asked = Asked()
    own = {*_OUTPUT, *_CACHE, "cache_option", "lora"}
    for name, key in _OUTPUT.items():
        if body.get(name) is not None:
            asked.output[key] = body[name]
    if body.get("lora"):
        asked.options["loras"] = body["lora"]
    if (cache := _cache(body)) is not None:
        asked.options["cache"] = cache
    known = _paths(mode.declared)
    elsewhere = {
        path: names for each in (TXT2IMG, INPAINT, EDIT, IMG2VID) for path, names in _paths(each.declared).items()
    }
    switched_off = set()
    for path, value in _leaves({name: value for name, value in body.items() if name not in own}):
        if _is_nothing(path, value):
            continue
        if path in known:
            name, *inner = known[path]
            if not inner:
                asked.options[name] = value
            elif inner == [""]:
                switched_off |= set() if value else {name}
                if value:
                    asked.options.setdefault(name, {})
            else:
                asked.options.setdefault(name, {})[inner[0]] = value
        elif path not in elsewhere:
            asked.notes.append(f"{path} is no field that has an effect here")
        elif (defaults or {}).get(elsewhere[path][0], value) != value:
            asked.notes.append(f"{path} has no effect in {mode.name}")
    for name in switched_off:
        asked.options.pop(name, None)
    _tidy(asked.options, defaults or {})
    return asked


def _tidy(options: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Leave out what clients send with whole objects and what says nothing without something else."""
    # What has an effect on some models alone is an error on others, and no client asks for it by sending the default.
    for name in GENERATION:
        if name in options and options[name] in (defaults.get(name), 0):
            del options[name]
    if options.get("eta") == 1.0 and not adds_noise(options.get("sampler", "euler_a")):
        del options["eta"]
    guidance = options.get("skip_layer_guidance")
    if guidance is not None and not (guidance.get("scale") and guidance.get("layers")):
        del options["skip_layer_guidance"]
    if not options.get("control_image"):
        options.pop("control_strength", None)
    if hires := options.get("hires"):
        if hires.get("upscaler") == "None":
            del options["hires"]
        elif hires.get("target_width") or hires.get("target_height"):
            hires.pop("scale", None)
        if not hires.get("model"):
            hires.pop("upscale_tile_size", None)
    if tiling := options.get("vae_tiling"):
        for side in ("x", "y"):
            if not tiling.get(f"rel_size_{side}"):
                tiling.pop(f"rel_size_{side}", None)
            else:
                tiling.pop(f"tile_size_{side}", None)
    if options.get("sigmas"):
        for name in ("steps", "scheduler"):
            options.pop(name, None)


def from_text(option: Option, text: str) -> Any:
    """Return the JSON value that the text of a form's field means.

    Raises:
        ArgumentError: it is none.
    """
    if isinstance(option.kind, Picture):
        return text
    whole = isinstance(option.kind, (Integer, Number, Switch)) or text[:1] in ("[", "{")
    if not whole:
        return text
    try:
        return json.loads(text.lower() if isinstance(option.kind, Switch) else text)
    except ValueError:
        raise ArgumentError(f"{option.name} cannot be read from {show(text)}") from None
