"""The parameters that travel in a picture's file, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .options.declare import Option, declared
from .options.group import Grouped


def _pairs(parameters: Mapping[str, Any], options: Mapping[str, Option]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each parameter, of groups those of their fields."""
    for name, value in parameters.items():
        option = options.get(name)
        if value is None or (option is not None and isinstance(value, str) and not value):
            continue
        if option is None:
            yield name, f"{value:g}" if isinstance(value, float) else str(value)
            continue
        if option.opt.png:
            yield option.opt.png, option.kind.text(value, option)
        if isinstance(option.kind, Grouped):
            yield from _pairs(value, declared(option.kind.owner))


def parameters_text(parameters: Mapping[str, Any], options: Mapping[str, Option]) -> str:
    """Return generation parameters in the A1111 form: prompt, negative prompt, then ``Name: value`` pairs.

    The form is the one that AUTOMATIC1111's web UI writes under the PNG key ``parameters`` and that other tools
    read: https://github.com/AUTOMATIC1111/stable-diffusion-webui (modules/infotext_utils.py). Values that hold a
    comma, colon or line break are quoted as JSON strings, as it does, and those that begin with a quotation mark.

    Args:
        parameters: plain values by name of the option, of groups mappings likewise; other names are written as they
            are. None is left out. Those that pictures carry always come first, in the order of *options*.
        options: the declared options. Those without a name in pictures are left out, and values of options that share
            such a name are joined: ``512x768``.
    """
    import json

    first = [name for name, option in options.items() if option.opt.always and name in parameters]
    rest = {name: value for name, value in parameters.items() if name not in ("prompt", "negative_prompt", *first)}
    pairs: dict[str, str] = {}
    for name, text in _pairs({**{name: parameters[name] for name in first}, **rest}, options):
        pairs[name] = f"{pairs[name]}x{text}" if name in pairs else text

    def quote(text: str) -> str:
        needed = text.startswith('"') or any(mark in text for mark in ",:\n")
        return json.dumps(text, ensure_ascii=False) if needed else text

    lines = [str(parameters.get("prompt", ""))]
    if negative := parameters.get("negative_prompt"):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {quote(text)}" for name, text in pairs.items()))
    return "\n".join(lines)
