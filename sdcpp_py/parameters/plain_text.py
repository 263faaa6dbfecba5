"""The text that this package and AUTOMATIC1111's web UI write."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError
from ..metadata import ALSO_GIVEN, MODE, VERSION, split_text, together
from ..modes import IMG2IMG, INPAINT, LOADING, TXT2IMG, Mode
from ..options.declare import Option, declared
from ..options.group import Grouped
from ..options.groups import DENOISING_STRENGTH, Hires
from ..options.kinds import UnreadableError
from .found import MODES, Found, Parameters
from .names import A1111_KARRAS, A1111_SAMPLERS, A1111_SCHEDULERS

_ABOUT = (
    MODE, VERSION, "Model", "Model hash", "VAE", "VAE hash", "TAESD", "ControlNet", "Lora tensors", "Lora hashes",
    "Embeddings", "TI hashes", "Hashes", "User", "Created Date",
)  # fmt: skip
_AFTERWARDS = "Postprocess "
"""How A1111's names of what was done to a drawn picture begin, and an upscaler's here."""
# Of A1111's forks: name -> our option.
_ALSO = {"Distilled CFG Scale": "guidance", "Shift": "flow_shift"}

Targets = Mapping[str, list[tuple[tuple[str, ...], Option]]]


@functools.cache
def _targets(mode: Mode) -> Targets:
    """Return the options of each name in pictures, those of groups with their group."""
    found: dict[str, list[tuple[tuple[str, ...], Option]]] = {}
    levels: list[tuple[tuple[str, ...], Mapping[str, Option]]] = [((), mode.declared)]
    levels += [
        ((name,), declared(option.kind.owner))
        for name, option in mode.declared.items()
        if isinstance(option.kind, Grouped)
    ]
    for above, options in levels:
        for png, names in together(options).items():
            found[png] = [((*above, name), options[name]) for name in names]
    return found


@functools.cache
def _known() -> Mapping[str, Any]:
    """Return every name that a line of pairs may have."""
    known: dict[str, Any] = dict.fromkeys((*_ABOUT, f"{_AFTERWARDS}upscale by"))
    for mode in MODES.values():
        known |= _targets(mode)
    return known


@functools.cache
def _of_loading() -> Mapping[str, Option]:
    """Return the options of loading that pictures carry, files apart, by their name there."""
    return {option.opt.png: option for option in LOADING.declared.values() if option.opt.png not in ("", *_ABOUT)}


def _mode_of(pairs: Mapping[str, str]) -> Mode:
    """Return the mode that drew a picture, as far as its text tells."""
    if pairs.get(MODE) in MODES:
        return MODES[pairs[MODE]]
    masks = {png for png in _targets(INPAINT) if png not in _targets(IMG2IMG)}
    if not masks.isdisjoint(pairs):
        return INPAINT
    hires = {option.opt.png for option in declared(Hires).values()} - {DENOISING_STRENGTH}
    return IMG2IMG if DENOISING_STRENGTH in pairs and hires.isdisjoint(pairs) else TXT2IMG


def read_text(text: str) -> Parameters | None:
    """Return the parameters of a text; None where it has no line of pairs.

    The form is AUTOMATIC1111's: https://github.com/AUTOMATIC1111/stable-diffusion-webui (modules/infotext_utils.py).

    Args:
        text: as the picture carries it.
    """
    split = split_text(text, _known())
    if not split.pairs:
        return None
    ours = split.pairs.get(VERSION, "").startswith("sdcpp-py")
    mode = _mode_of(split.pairs)
    found = Found(mode, "sdcpp-py" if ours else "AUTOMATIC1111", text)
    if not all(name.startswith(_AFTERWARDS) for name in split.pairs):
        found.add(("prompt",), split.prompt, "Prompt")
    if split.negative_prompt:
        found.add(("negative_prompt",), split.negative_prompt, "Negative prompt")
    pairs = dict(split.pairs)
    if not ours:
        _read_samplers(found, pairs)
        _read_foreign(found, pairs)
    loading = _of_loading()
    for name, value in pairs.items():
        if name == ALSO_GIVEN:
            found.also_given = value.split(", ")
        elif name in _targets(mode):
            _read_pair(found, name, value)
        elif name in loading:
            titles = loading[name].opt.titles
            if not ours and value not in (titles or {}).values():
                found.unmapped[name] = value
                continue
            try:
                found.add_loading(loading[name].name, loading[name].kind.from_text(value, loading[name]), name, value)
            except UnreadableError:
                found.unmapped[name] = value
        else:
            told = name in _ABOUT or name.startswith(_AFTERWARDS)  # drawing it again does not do that again
            (found.about if told else found.unmapped)[name] = value
    if split.rest:
        found.unmapped["lines behind"] = split.rest
    return found.parameters()


def _read_pair(found: Found, name: str, text: str) -> None:
    """Read a pair into the option, or the options that share the name."""
    targets = _targets(found.mode)[name]
    parts = text.split("x") if len(targets) > 1 else [text]
    if len(parts) > len(targets):
        found.unmapped[name] = text
        return
    try:
        # All before any: of a size that is none no side is taken.
        read = [
            (path, option.check(option.kind.from_text(part, option)))
            for (path, option), part in zip(targets, parts, strict=False)
            if part or len(targets) == 1
        ]
    except (ArgumentError, UnreadableError):
        found.unmapped[name] = text
        return
    for path, value in read:
        found.add(path, value, name, text)


def _read_samplers(found: Found, pairs: dict[str, str]) -> None:
    """Take A1111's sampler and schedule out of pairs; until version 1.9 one name was both."""
    sampler_name, scheduler_name = (TXT2IMG.declared[each].opt.png for each in ("sampler", "scheduler"))
    title, schedule = pairs.pop(sampler_name, None), pairs.pop(scheduler_name, None)
    if title is not None and schedule is None:
        first, _, last = title.rpartition(" ")
        if last in ("Karras", "Exponential") and title not in A1111_SAMPLERS:
            title, schedule = first, last
    sampler = A1111_SAMPLERS.get(title or "")
    if sampler is not None:
        found.add(("sampler",), sampler, sampler_name, title)
    elif title is not None:
        found.unmapped[sampler_name] = title
    if schedule is not None:
        scheduler = A1111_SCHEDULERS.get(schedule)
        if schedule == "Automatic" and sampler in A1111_KARRAS:
            scheduler = "karras"
        if scheduler is None or (schedule == "Automatic" and sampler is None):
            found.unmapped[scheduler_name] = schedule
        else:
            found.add(("scheduler",), scheduler, scheduler_name, schedule)


def _read_foreign(found: Found, pairs: dict[str, str]) -> None:
    """Take out of pairs what A1111 and its forks say in other words than ours."""
    for name, option in _ALSO.items():
        if name in pairs:
            text = pairs.pop(name)
            try:
                found.add(
                    (option,), found.mode.declared[option].kind.from_text(text, found.mode.declared[option]), name
                )
            except (KeyError, UnreadableError):
                found.unmapped[name] = text
    upscaler = declared(Hires)["upscaler"].opt.png
    if upscaler in pairs and not pairs[upscaler].startswith(("Latent", "Lanczos", "Nearest")):
        found.unmapped[upscaler] = pairs.pop(upscaler)  # the name of a model's file, or none of ours
    area = "Inpaint area"
    if pairs.get(area) == "Whole picture":
        del pairs[area]
    mode = INPAINT.declared["invert"].opt.png
    if pairs.get(mode) == "Inpaint masked":
        del pairs[mode]
