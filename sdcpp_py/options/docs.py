"""``docs/options.md``: a table of every option, written from the declarations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .declare import REQUIRED, Option, declared
from .group import Grouped

_HEADER = """# Every option

Written by `python -m sdcpp_py.options docs/options.md` from the declarations in `sdcpp_py/options/`; edit those.
Names of samplers, schedulers, types and the like: `sdcpp_py.choices()` or `sdcpp doctor --names`. A default in italics
is the engine's own, or what it chooses; the embedded model has others. The name in pictures is that in their text.
"""
_COLUMNS = ("option", "type", "what it is", "range", "default", "flag", "in pictures", "engine field")


def _type(option: Option) -> str:
    """Return an option's type for readers."""
    if isinstance(option.kind, Grouped):
        return option.kind.owner.__name__
    return type(option.kind).__name__.replace("Kind", "Text").lower()


def row(name: str, option: Option, prefix: str = "") -> tuple[str, ...]:
    """Return the cells of one option."""
    own = option.default is None and option.default_text
    default = "required" if option.default is REQUIRED else option.default_text
    doc = f"{option.opt.doc} (for {', '.join(option.opt.only)})" if option.opt.only else option.opt.doc
    key = f" `{option.opt.key}=`" if option.opt.key else ""
    return (
        f"`{name}`",
        _type(option),
        doc.replace("|", "\\|").replace("<", "&lt;"),
        option.limits,
        f"*{default}*" if own else default,
        " ".join(f"`{flag}`" for flag in option.flags) + key,
        option.opt.png,
        f"`{prefix}{option.opt.field}`" if option.opt.field else "",
    )


def table(options: Mapping[str, Option], prefix: str = "") -> str:
    """Return a Markdown table of options; *prefix* is the engine's field that theirs are in."""
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS), *(row(name, option, prefix) for name, option in options.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _groups(options: Mapping[str, Option]) -> Iterator[Option]:
    """Yield the options that are groups."""
    return (option for option in options.values() if isinstance(option.kind, Grouped))


def page(calls: Mapping[str, Mapping[str, Option]]) -> str:
    """Return the page.

    Args:
        calls: heading -> the options of a call. What an earlier call has is only named.
    """
    parts = [_HEADER]
    shown: dict[str, Option] = {}
    for heading, every in calls.items():
        options = {
            name: option for name, option in every.items() if name not in shown or shown[name].opt is not option.opt
        }
        parts.append(f"## {heading}\n\n{table(options)}\n")
        if known := [f"`{name}`" for name in every if name not in options]:
            parts.append(f"As above: {', '.join(known)}.\n")
        shown |= options
        for option in _groups(options):
            assert isinstance(option.kind, Grouped)
            owner = option.kind.owner
            first = (owner.__doc__ or "").split("\n", 1)[0]
            parts.append(f"### {owner.__name__}\n\n{first}\n\n{table(declared(owner), f'{option.opt.field}.')}\n")
    return "\n".join(parts)
