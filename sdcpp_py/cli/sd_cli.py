"""What sd-cli calls a flag and this command does not: what stands for it here, or the line that says so.

Flags with the same name and meaning in both are those of the declared options; all others are in one table here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["FLAGS", "PLACING", "Foreign", "answer", "command_for"]


@dataclass(frozen=True)
class Foreign:
    """A flag of sd-cli.

    Attributes:
        names: what it is called there.
        flag: the flag here that a switch stands for; empty where it is only answered.
        value: what it then says to that flag, besides what is said already.
        says: the line for who types one that is only answered; what to do instead.
    """

    names: tuple[str, ...]
    flag: str = ""
    value: str = ""
    says: str = ""


_INFO = "sdcpp info FILE says what a picture carries"
_UNREAD = "no video model that the engine draws with reads it; leave it away"

FLAGS = (
    # sd-cli computes the module on the CPU, and with --offload-to-cpu keeps all weights there between uses.
    Foreign(("--vae-on-cpu",), "--runtime-backend", "vae=cpu"),
    Foreign(("--clip-on-cpu",), "--runtime-backend", "te=cpu"),
    Foreign(("--control-net-cpu",), "--runtime-backend", "controlnet=cpu"),
    Foreign(("--offload-to-cpu",), "--params-backend", "cpu"),
    Foreign(("--image",), says=_INFO),
    Foreign(("--metadata-format",), says=f"{_INFO}, with --json as JSON"),
    Foreign(("--metadata-raw",), says=f"{_INFO}; there is no raw form of it"),
    Foreign(("--metadata-brief",), says=f"{_INFO}, whole"),
    Foreign(("--metadata-all",), says=f"{_INFO}; a file's structure is not shown"),
    Foreign(("--color",), says="the log has no colours; leave it away"),
    Foreign(("--preview-noisy",), says="previews show what the picture becomes, without its noise; leave it away"),
    Foreign(("--hires-upscalers-dir",), says="name the upscaler's file: --hires-model FILE"),
    Foreign(("--upscale-model",), says="draw first, then: sdcpp upscale -i PICTURE --upscale-model FILE"),
    Foreign(("--upscale-repeats",), says="draw first, then: sdcpp upscale -i PICTURE --upscale-repeats N"),
    Foreign(("--upscale-tile-size",), says="draw first, then: sdcpp upscale -i PICTURE --upscale-tile-size N"),
    Foreign(("--high-noise-img-cfg-scale",), says=_UNREAD),
    Foreign(("--high-noise-guidance",), says=_UNREAD),
    Foreign(("--high-noise-slg-scale",), says=_UNREAD),
    Foreign(("--high-noise-skip-layers",), says=_UNREAD),
    Foreign(("--high-noise-skip-layer-start",), says=_UNREAD),
    Foreign(("--high-noise-skip-layer-end",), says=_UNREAD),
    Foreign(("--mode", "-M"), says="each mode is a command"),
)
"""Every flag of sd-cli that no option here is called by."""

PLACING = tuple(each for each in FLAGS if each.flag)
"""Those that stand for a flag here."""

_BY_NAME = {name: each for each in FLAGS for name in each.names}


def _value(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """Return what a flag is given, None where it is not there."""
    for word, after in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else after
        if not word.startswith("--") and word[:2] in names:
            return word[2:]
    return None


def command_for(arguments: Sequence[str]) -> str | None:
    """Return the command that draws what arguments of sd-cli ask for; None if their mode is none of sd-cli's."""
    mode = _value(arguments, ("-M", "--mode")) or "img_gen"
    begins = _value(arguments, ("-i", "--init-img")) is not None
    if mode == "img_gen":
        if _value(arguments, ("-r", "--ref-image")) is not None:
            return "edit"
        if begins:
            return "img2img" if _value(arguments, ("--mask",)) is None else "inpaint"
        return "txt2img"
    if mode == "vid_gen":
        return "img2vid" if begins else "txt2vid"
    return {"upscale": "upscale", "convert": "convert", "metadata": "info"}.get(mode)


def _say_mode(arguments: Sequence[str], command: str) -> str:
    """Return the line for ``-M``."""
    wanted = command_for(arguments)
    if wanted is None:
        return (
            "each mode is a command: img_gen is txt2img, img2img, inpaint or edit, vid_gen is txt2vid or img2vid, "
            "upscale and convert have the same name, metadata is info"
        )
    if wanted == command:
        return f"leave it away: sdcpp {command} is that mode"
    return f"each mode is a command, and this one is sdcpp {wanted}; leave it away there"


def answer(name: str, arguments: Sequence[str], command: str, takers: Mapping[str, Sequence[str]]) -> str:
    """Return the line for a flag that a command does not take, empty where nothing is known of it.

    Args:
        name: of the flag, with its dashes.
        arguments: that were given to the command.
        command: its name, empty where none was named.
        takers: the flags of each command.
    """
    if not command:
        wanted = command_for(arguments)
        known = name in _BY_NAME or any(name in flags for flags in takers.values())
        if name in ("-M", "--mode") and wanted is None:
            return f"{name}: {_say_mode(arguments, command)}"
        if not known:
            return ""
        without = ", without -M" if _value(arguments, ("-M", "--mode")) is not None else ""
        return f"{name}: name the command first{without}: sdcpp {wanted}"
    if name in ("-M", "--mode"):
        return f"{name}: {_say_mode(arguments, command)}"
    if name in _BY_NAME and not _BY_NAME[name].flag:
        return f"{name}: {_BY_NAME[name].says}"
    found = [taker for taker, flags in takers.items() if name in flags]
    if found:
        return f"sdcpp {command} takes no {name}; {', '.join(found)} {'does' if len(found) == 1 else 'do'}"
    return ""
