"""The parameters that travel in a picture's file, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .options.declare import Option, declared
from .options.group import Grouped

if TYPE_CHECKING:
    from PIL.Image import Image

EXIF_IFD, EXIF_USER_COMMENT = 0x8769, 0x9286


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


def _quoted(text: str) -> str:
    """Return a value as the text of parameters writes it."""
    import json

    needed = text.startswith('"') or any(mark in text for mark in ",:\n")
    return json.dumps(text, ensure_ascii=False) if needed else text


def with_pairs(text: str | None, pairs: Mapping[str, Any]) -> str:
    """Return the text that a picture carries with ``Name: value`` pairs added; None stands for a picture without."""
    added = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items())
    return f"{text}, {added}" if text else added


def picture_text(image: Image) -> str | None:
    """Return the text that a picture carries as it is: PNG's ``parameters``, or the comment of EXIF; None without one.

    Args:
        image: a picture that Pillow has read.
    """
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    try:
        comment = image.getexif().get_ifd(EXIF_IFD).get(EXIF_USER_COMMENT)
    except Exception:  # damaged tags, of which Pillow raises anything
        return None
    if isinstance(comment, str):
        return comment or None
    if not isinstance(comment, bytes):
        return None
    # Eight bytes say which characters follow: EXIF 2.3, 4.6.5.
    code, rest = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        # The order of bytes is that of the file or, as most write it, the large end first; letters tell.
        order = "utf-16-le" if rest[1:2] == b"\0" else "utf-16-be"
        return rest.decode(order, "replace").rstrip("\0") or None
    return rest.decode("utf-8", "replace").strip("\0 ") or None


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
    first = [name for name, option in options.items() if option.opt.always and name in parameters]
    rest = {name: value for name, value in parameters.items() if name not in ("prompt", "negative_prompt", *first)}
    pairs: dict[str, str] = {}
    for name, text in _pairs({**{name: parameters[name] for name in first}, **rest}, options):
        pairs[name] = f"{pairs[name]}x{text}" if name in pairs else text

    lines = [str(parameters.get("prompt", ""))]
    if negative := parameters.get("negative_prompt"):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {_quoted(text)}" for name, text in pairs.items()))
    return "\n".join(lines)
