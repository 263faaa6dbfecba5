"""Clients are told nothing of this machine's folders: where a message has a path, they get the file's name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

_Said = TypeVar("_Said")

HIDDEN = "..."
"""What stands for a folder."""
_DRAWN_WITH = frozenset({"parameters", "text"})
"""What clients said themselves: their prompts stay as they are."""
_ROOT = r"(?:/(?!/)|[A-Za-z]:[\\/])"
_PART = r"""[^\s/\\'"`<>|:;,()\[\]{}]+"""
_FILE = re.compile(r".*\.[A-Za-z]\w*")


class Folders:
    """The folders of this machine.

    Args:
        known: files and folders that messages may name: in a text the end of a path that has spaces is seen only by
            who knows it, and likewise one that does not begin at the root.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        folders = set()
        for path in (os.path.expanduser("~"), *known):  # a hub's files lie there
            for form in (path, os.path.abspath(path), os.path.realpath(path)):
                folders |= {os.path.dirname(form), *([form] if os.path.isdir(form) else ())}
        names = sorted((each.rstrip("/\\") for each in folders if each.strip("/\\.")), key=len, reverse=True)
        below = "|".join(map(re.escape, names))
        alone = "|".join(re.escape(each) for each in names if re.search(r"[/\\]", each))  # others may be mere words
        nothing = "(?!)"
        self._paths = re.compile(
            rf"""(?<![\w.~/\\-])(?:
                (?P<alone>(?:{alone or nothing})(?![\w/\\-]|\.\w))
                | (?P<below>(?:{below or nothing})[/\\]+(?:{_PART}[/\\]+)*)
                | (?<=['"])(?P<quoted>{_ROOT}[^'"]+)(?=['"])
                | (?P<other>{_ROOT}(?:{_PART}[/\\]+)*{_PART})
            )""",
            re.VERBOSE,
        )

    def hide(self, said: _Said) -> _Said:
        """Return a text without folders, or a value of JSON with such texts."""
        if isinstance(said, str):
            return self._paths.sub(self._shown, said)  # type: ignore[return-value]
        if isinstance(said, Mapping):
            return {name: self.hide(each) for name, each in said.items()}  # type: ignore[return-value]
        if isinstance(said, (list, tuple)):
            return type(said)(self.hide(each) for each in said)
        return said

    @staticmethod
    def _shown(path: re.Match[str]) -> str:
        """Return what is shown in place of a path, or of the beginning of one."""
        if path["below"]:
            return ""
        name = re.split(r"[/\\]", path["quoted"] or path["other"] or "")[-1]
        return name if _FILE.match(name) else HIDDEN

    def told(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a job came to as clients may know it: an error, or a result."""
        return {name: each if name in _DRAWN_WITH else self.hide(each) for name, each in said.items()}
