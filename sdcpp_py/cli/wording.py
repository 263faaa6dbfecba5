"""Messages in the words of the command: flags where the package says the names of options."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ..errors import SdcppError
from ..options.group import Grouped

if TYPE_CHECKING:
    from .flags import Flag

# What is shown of a caller's values stays as it is, and so does what would be one.
_QUOTED = r"'[^']*'|\"[^\"]*\""
# Where a name that is an English word, too, is one of an option: at the beginning, and around such words.
_BEFORE = r"(?:^|(?<=\bneeds )|(?<=\bwith )|(?<=\bwithout ))"
_AFTER = r"(?= (?:has|had) no effect| must | needs | is \d)"


class Wording:
    """How a command says the names of options.

    Args:
        flags: of the command.
    """

    def __init__(self, flags: Iterable[Flag]) -> None:
        self._names: dict[str, str] = {}
        self._switches: dict[str, tuple[str, bool]] = {}
        for flag in flags:
            said = next((name for name in flag.names if name.startswith("--")), flag.names[0])
            for target in flag.targets:
                key = f" {target.option.opt.key}=" if target.option.opt.key else ""
                self._names.setdefault(".".join(target.path), f"{said}{key}")
                if len(target.path) == 1 and flag.is_switch:
                    grouped = isinstance(target.option.kind, Grouped)
                    self._switches.setdefault(target.path[0], (said, grouped or target.option.opt.sets))
                if target.owner:  # messages call a field by its class, or by itself beside another one
                    group, field = target.path
                    self._names.setdefault(f"{target.owner}.{field}", f"{said}{key}")
                    self._names.setdefault(group, said)
                    if "_" in field:
                        self._names.setdefault(field, f"{said}{key}")
        longest = sorted(map(re.escape, self._names), key=len, reverse=True)
        one_of = "|".join(longest)
        odd = "|".join(name for name in longest if re.search(r"[_.\d]", name))
        self._found = re.compile(
            rf"(?P<given>(?<![\w./\\-])(?P<name>{one_of})=(?P<value>{_QUOTED}|\.\.\.|[\w.-]*[\w-])?)"
            rf"|(?P<quoted>(?<!\w)(?:{_QUOTED})|\bvalid: [^;]*)"
            rf"|(?P<odd>(?<![\w./\\-])(?:{odd or '(?!)'})(?![\w/\\-]|\.\w))"
            rf"|(?P<both>\b(?:width and height|width or height)\b)"
            rf"|(?P<plain>{_BEFORE}(?:{one_of})\b(?![=./\\-])|(?<![\w./\\-])(?<!module )(?:{one_of}){_AFTER})"
        )

    def say(self, text: str) -> str:
        """Return a message with flags in place of options' names."""
        return self._found.sub(self._flag, text.replace(" when loading the model", ""))

    def _flag(self, match: re.Match[str]) -> str:
        """Return what stands for a name, with its value if there is one."""
        if match["quoted"] is not None:
            return match[0]
        if match["both"] is not None:
            return re.sub("width|height", lambda found: self._names.get(found[0], found[0]), match[0])
        if match["given"] is None:
            return self._names[match[0]]
        name, value = match["name"], match["value"]
        if name in self._switches and value in ("True", "False"):
            said, sets = self._switches[name]
            return said if str(sets) == value else f"no {said}"
        said = self._names[name]
        return f"{said} {value.strip(chr(39))}" if value else said


_wording: ContextVar[Wording | None] = ContextVar("sdcpp_py_wording", default=None)


def in_flags(text: str) -> str:
    """Return a message in the words of the command that runs, as it is outside of one."""
    current = _wording.get()
    return text if current is None else current.say(text)


@contextlib.contextmanager
def wording(flags: Iterable[Flag]) -> Iterator[None]:
    """Say the errors of this package, and what :func:`in_flags` is asked meanwhile, in the words of a command."""
    token = _wording.set(Wording(flags))
    try:
        yield
    except SdcppError as error:
        error.args = (in_flags(str(error)), *error.args[1:])
        raise
    finally:
        _wording.reset(token)
