"""The parameters that travel in a picture's file, as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .options.declare import Option, declared
from .options.group import Grouped

if TYPE_CHECKING:
    from PIL.Image import Image

EXIF_IFD, EXIF_USER_COMMENT = 0x8769, 0x9286
MODE, VERSION = "Mode", "Version"
"""What the text calls the mode, where it is another than txt2img, and the package."""
ALSO_GIVEN = "Also given"
"""Name of the list of options that took pictures beside the mode's own."""
EXACT_PROMPT, EXACT_NEGATIVE_PROMPT = "Exact prompt", "Exact negative prompt"
"""Names of prompts that the form could not be read back from, such as one that holds a line of pairs itself."""
_NEGATIVE = "Negative prompt:"
_NAME = re.compile(r"\s*(\w[^,:\"\n]*):\s*")


class Text(NamedTuple):
    """The text that a picture carries, taken apart.

    Attributes:
        prompt: what stands before anything else.
        negative_prompt: what stands behind it; empty for none.
        pairs: name -> value, in their order.
        rest: lines behind them, of other tools.
    """

    prompt: str
    negative_prompt: str
    pairs: dict[str, str]
    rest: str = ""


def notes(values: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, str]:
    """Return the options that pictures carry and that are not their defaults: name there -> text.

    Args:
        values: resolved values by option.
        options: the options.
    """
    found = {}
    for name, option in options.items():
        value = values.get(name)
        if option.opt.png and value is not None and value not in (option.default, option.opt.engine_default):
            found[option.opt.png] = option.kind.text(option.kind.plain(value), option)
    return found


def together(options: Mapping[str, Option]) -> dict[str, list[str]]:
    """Return the options of each name in pictures, in order; several share one value: ``512x768``."""
    found: dict[str, list[str]] = {}
    for name, option in options.items():
        if option.opt.png:
            found.setdefault(option.opt.png, []).append(name)
    return found


def _pairs(parameters: Mapping[str, Any], options: Mapping[str, Option]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each parameter, of groups those of their fields."""
    sharing = together(options)
    texts = {
        name: options[name].kind.text(value, options[name])
        for name, value in parameters.items()
        if name in options and options[name].opt.png and value is not None and value != ""
    }
    for name, value in parameters.items():
        option = options.get(name)
        if option is None and value is not None:
            yield name, f"{value:g}" if isinstance(value, float) else str(value)
        if name in texts and option is not None:
            # Of one side alone the other one's place stays empty.
            shared = sharing[option.opt.png]
            if name == next(each for each in shared if each in texts):
                yield option.opt.png, "x".join(texts.get(each, "") for each in shared)
        if option is not None and isinstance(option.kind, Grouped) and value is not None:
            yield from _pairs(value, declared(option.kind.owner))


def _quoted(text: str) -> str:
    """Return a value as the text of parameters writes it."""
    import json

    needed = text.startswith('"') or text != text.strip() or any(mark in text for mark in ",:\n")
    return json.dumps(text, ensure_ascii=False) if needed else text


def _read_pairs(line: str) -> dict[str, str] | None:
    """Return the pairs of a line; None for one that is something else."""
    import json

    found: dict[str, str] = {}
    at = 0
    while at < len(line):
        named = _NAME.match(line, at)
        if named is None:
            return None if line[at:].strip() else found
        at = named.end()
        value = None
        if line.startswith('"', at):
            try:
                value, end = json.JSONDecoder().raw_decode(line, at)
            except ValueError:
                value = None
            if value is not None and line[end:].lstrip()[:1] not in ("", ","):
                value = None
        if value is None:
            end = line.find(",", at)
            end = len(line) if end < 0 else end
            value = line[at:end].strip()
        found[named[1].rstrip()] = value
        comma = line.find(",", end)
        at = len(line) if comma < 0 else comma + 1
    return found or None


def split_text(text: str, known: Mapping[str, Any]) -> Text:
    """Return the text that a picture carries taken apart; of one in another form everything is the prompt.

    Args:
        text: in the form that :func:`parameters_text` writes.
        known: names of pairs, of which the line of pairs has at least one.
    """
    lines = text.split("\n")
    pairs: dict[str, str] = {}
    rest = ""
    for index in range(len(lines) - 1, -1, -1):
        found = _read_pairs(lines[index])
        if found and not known.keys().isdisjoint(found):
            lines, pairs, rest = lines[:index], found, "\n".join(lines[index + 1 :]).strip()
            break
    begin = next((index for index, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[begin:]).removeprefix(_NEGATIVE).removeprefix(" ")
    prompt = "\n".join(lines[:begin])
    return Text(pairs.pop(EXACT_PROMPT, prompt), pairs.pop(EXACT_NEGATIVE_PROMPT, negative), pairs, rest)


def with_pairs(text: str | None, pairs: Mapping[str, Any]) -> str:
    """Return the text that a picture carries with ``Name: value`` pairs added; None stands for a picture without."""
    added = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items())
    return f"{text}, {added}" if text and added else text or added


def picture_text(image: Image) -> str | None:
    """Return the text that a picture carries as it is: PNG's ``parameters``, or the comment of EXIF or of a GIF.

    Args:
        image: a picture that Pillow has read.
    """
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    comment = image.info.get("comment")
    if image.format == "GIF" and isinstance(comment, bytes):
        return comment.decode("utf-8", "replace") or None
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
        # The order of bytes is that of the file or, as most write it, the large end first: letters beyond the first 256
        # are rarer than those among them, whose large end is 0.
        order = "utf-16-le" if rest[1::2].count(0) > rest[::2].count(0) else "utf-16-be"
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

    Returns:
        The text, from which :func:`split_text` reads both prompts and every value back exactly.
    """
    first = [name for name, option in options.items() if option.opt.always and name in parameters]
    rest = {name: value for name, value in parameters.items() if name not in ("prompt", "negative_prompt", *first)}
    pairs = dict(_pairs({**{name: parameters[name] for name in first}, **rest}, options))
    prompt, negative = str(parameters.get("prompt", "")), str(parameters.get("negative_prompt") or "")
    lines = [prompt]
    if negative:
        lines.append(f"{_NEGATIVE} {negative}")
    text = "\n".join([*lines, with_pairs(None, pairs)])
    read = split_text(text, pairs)
    exact = {EXACT_PROMPT: (prompt, read.prompt), EXACT_NEGATIVE_PROMPT: (negative, read.negative_prompt)}
    return with_pairs(text, {name: wanted for name, (wanted, found) in exact.items() if wanted != found})
