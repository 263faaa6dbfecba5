"""The metadata that InvokeAI writes into its pictures: ``invokeai_metadata``, and ``sd-metadata`` until version 2.3.

The form: https://invoke-ai.github.io/InvokeAI/features/other/#image-metadata,
and CoreMetadataInvocation in its sources.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError
from ..modes import IMG2IMG, INPAINT, TXT2IMG, Mode
from ..options.loras import Lora
from .found import Found, Parameters
from .names import INVOKEAI_SCHEDULERS

_PLAIN = {
    "width": "width",
    "height": "height",
    "seed": "seed",
    "steps": "steps",
    "cfg_scale": "cfg_scale",
    "guidance": "guidance",
    "strength": "strength",
}
_ABOUT = ("app_version", "generation_mode", "rand_device", "hrf_enabled", "app_id", "model_hash", "canvas_v2_metadata")
_EMPTY: tuple[Any, ...] = (None, "", [], {}, False, 0)


def read_invokeai(text: str) -> Parameters | None:
    """Return the parameters of InvokeAI's metadata; None where it is none.

    Args:
        text: as it stands in the file.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("image"), dict):
        content = _modern(content)
    if "positive_prompt" not in content:
        return None
    found = Found(_mode_of(content), "InvokeAI", text)
    found.add(("prompt",), content.pop("positive_prompt"), "positive_prompt")
    if negative := content.pop("negative_prompt", None):
        found.add(("negative_prompt",), negative, "negative_prompt")
    for name, value in content.items():
        if name in _PLAIN and value is not None:
            if name != "strength" or found.mode is not TXT2IMG:
                found.add((_PLAIN[name],), value, name)
        elif name == "clip_skip" and isinstance(value, int):
            # Theirs counts the layers that are left out, of which ours is one more.
            found.add(("clip_skip",), value + 1, name, str(value))
        elif name == "scheduler":
            _read_scheduler(found, str(value))
        elif name == "loras" and isinstance(value, list):
            _read_loras(found, value)
        elif name in ("seamless_x", "seamless_y") and value:
            found.add_loading(name.replace("seamless", "circular"), True, name)
        elif name in ("model", "vae"):
            found.about["Model" if name == "model" else "VAE"] = _name(value)
        elif name in _ABOUT:
            found.about[name] = str(value)
        elif value not in _EMPTY:
            found.unmapped[name] = value if isinstance(value, str) else json.dumps(value)
    return found.parameters()


def _modern(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return old metadata under the newer names."""
    image = dict(content["image"])
    prompt = image.pop("prompt", "")
    if isinstance(prompt, list):
        prompt = " ".join(str(part.get("prompt", "")) for part in prompt if isinstance(part, dict))
    positive, negative = _split_negative(str(prompt))
    renamed: dict[str, str] = {"sampler": "scheduler", "type": "generation_mode"}
    found = {renamed.get(str(name), str(name)): value for name, value in image.items()}
    found |= {"positive_prompt": positive, "negative_prompt": negative}
    for name in ("model_weights", "app_version"):
        if name in content:
            found["model" if name == "model_weights" else name] = content[name]
    return found


def _split_negative(prompt: str) -> tuple[str, str]:
    """Return a prompt and what it held in square brackets, which was the negative prompt."""
    kept, negative, rest = "", [], prompt
    while "[" in rest and "]" in rest[rest.index("[") :]:
        before, _, rest = rest.partition("[")
        inner, _, rest = rest.partition("]")
        kept += before
        negative.append(inner)
    return (kept + rest).strip(), " ".join(negative)


def _mode_of(content: Mapping[str, Any]) -> Mode:
    mode = str(content.get("generation_mode") or "")
    if "inpaint" in mode or "outpaint" in mode:
        return INPAINT
    return IMG2IMG if "img2img" in mode else TXT2IMG


def _name(value: Any) -> str:
    """Return what a model is called, which newer versions say as an object."""
    if isinstance(value, dict):
        value = value.get("name") or value.get("model_name") or value.get("key")
    return str(value)


def _read_scheduler(found: Found, name: str) -> None:
    if name not in INVOKEAI_SCHEDULERS:
        found.unmapped["scheduler"] = name
        return
    sampler, scheduler = INVOKEAI_SCHEDULERS[name]
    found.add(("sampler",), sampler, "scheduler", name)
    if scheduler is not None:
        found.add(("scheduler",), scheduler, "scheduler", name)


def _read_loras(found: Found, loras: list[Any]) -> None:
    taken = []
    for each in loras:
        model = each.get("model") or each.get("lora") if isinstance(each, dict) else None
        weight = each.get("weight") if isinstance(each, dict) else None
        try:
            taken.append(Lora(_name(model), weight))  # type: ignore[arg-type]
        except ArgumentError:
            found.unmapped["loras"] = json.dumps(each)
    if taken:
        found.add(("loras",), taken, "loras")
