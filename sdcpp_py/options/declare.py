"""What the declaration of an option is: one annotation, from which all else that needs the option derives.

A set of options is a ``TypedDict``, a group of options that are passed as one object a frozen dataclass derived from
:class:`sdcpp_py.options.group.Group`. In both an option is a field::

    steps: Annotated[int | None, Range(1, 10_000), Opt("sampling steps", field="sample_params.sample_steps",
                                                                flags="--steps", png="Steps", engine_default=20)]

Type checkers and IDEs read the type, and :func:`declared` all of it: for signatures and help (``signature``), checks
and engine fields (``kinds``), the command's flags (``sdcpp_py.cli``), the text in pictures (``sdcpp_py.metadata``), the
JSON schema (``schema``) and ``docs/options.md`` (``docs``).
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ForwardRef, NamedTuple, Union, get_args, get_origin, get_type_hints

from ..errors import ArgumentError, SdcppError
from .checks import show

if TYPE_CHECKING:
    from .kinds import Kind

REQUIRED = dataclasses.MISSING
"""The default of an option that must be given."""


class Range(NamedTuple):
    """The limits of a number, or of each of several.

    Not annotated-types, which says the same: importing it takes a tenth of what importing this package may take.
    """

    low: float
    high: float = math.inf
    multiple: int = 1


@dataclass(frozen=True, eq=False)
class Opt:
    """What an annotation says of an option besides its type and limits.

    Args:
        doc: what it is, as a phrase; limits and default are added to it where it is shown.
        field: the engine's field, as a path from the struct that the set or group fills; empty for what the engine
            does not see by itself.
        flags: the command's flags, separated by spaces, sd-cli's name first where it has one. Options with the same
            flag share it: ``AxB`` gives numbers to each, a switch sets them all.
        default: what is taken when it is not given. None leaves it to the engine.
        engine_default: what the engine takes then, for people to read: its value, which a test compares, or a phrase.
        png: its name in the text that pictures carry, A1111's where that has one. Options with the same name share it.
        always: whether pictures carry it also where it was not given.
        titles: how that text writes its values, where otherwise than the engine.
        choices: the engine's list that a text must be in, as ``engine.enum_names`` takes it.
        without: members of that list that ask for nothing.
        pattern: regular expression that a text must match.
        only: the modes, of a group that has a mode, in which it has an effect.
        key: what a flag that several options share calls it, in ``KEY=VALUE,...``.
        sets: what a switch sets, of an option that is True or False.
        words: the flag's words for False and True, instead of a switch.
        suggest: what the command's completion offers, where no list of the engine says it.
        flag_doc: what it is on the command line, where that differs.
        json_doc: what it is where JSON holds it, in requests and the lines of batches, where that differs.
        panel: heading of the command's help.
        metavar: what that help calls the value.
        label: what messages about the file call it.
        kind: how values are handled; by default what the type says.
    """

    doc: str
    field: str = ""
    flags: str = ""
    default: Any = None
    engine_default: Any = None
    png: str = ""
    always: bool = False
    titles: Mapping[str, str] | None = None
    choices: str = ""
    without: tuple[str, ...] = ()
    pattern: str = ""
    only: tuple[str, ...] = ()
    key: str = ""
    sets: bool = True
    words: tuple[str, str] | None = None
    suggest: tuple[str, ...] = ()
    flag_doc: str = ""
    json_doc: str = ""
    panel: str = ""
    metavar: str = ""
    label: str = ""
    kind: Kind | None = None


@dataclass(frozen=True, eq=False)
class Option:
    """One declared option.

    Attributes:
        name: the keyword.
        type: its type without None.
        optional: whether None may be passed.
        default: what is taken when it is not given, REQUIRED when it must be.
        opt: the rest of the declaration.
        low: the least number, -inf for none.
        high: the most.
        multiple: what a number must be a multiple of.
        kind: how values are checked, read, shown and handed to the engine.
    """

    name: str
    type: Any
    optional: bool
    default: Any
    opt: Opt
    low: float
    high: float
    multiple: int
    kind: Kind

    def check(self, value: Any, name: str | None = None) -> Any:
        """Return a value as plain Python, or raise ArgumentError that begins with *name*, the option's by default."""
        if value is None and self.optional:
            return None
        said = name or self.name
        try:
            return self.kind.check(said, value, self)
        except (SdcppError, MemoryError, RecursionError):
            raise
        except Exception as error:  # whatever a foreign object raises
            raise ArgumentError(f"{said} cannot be read from {show(value)}: {type(error).__name__}") from error

    def resolve(self, value: Any, name: str | None = None) -> Any:
        """Return a checked value with every name as the engine spells it; asks the engine for its names."""
        return None if value is None else self.kind.resolve(name or self.name, value, self)

    @property
    def flags(self) -> list[str]:
        """The command's flags, none if it has none."""
        return self.opt.flags.split()

    @property
    def limits(self) -> str:
        """The values that will do, as a phrase; empty when the type says all."""
        said = []
        if math.isfinite(self.low) and math.isfinite(self.high):
            said.append(f"{_show(self.low)} to {_show(self.high)}")
        elif math.isfinite(self.low):
            said.append(f"at least {_show(self.low)}")
        if self.multiple > 1:
            said.append(f"a multiple of {self.multiple}")
        return ", ".join(said)

    @property
    def default_text(self) -> str:
        """The default as a phrase, the engine's own where it is left to the engine; empty for none."""
        if self.default is None:
            own = self.opt.engine_default
            if self.opt.words and isinstance(own, bool):
                return self.opt.words[own]
            return "" if own is None else _show(own)
        if self.default is REQUIRED or self.default is False or self.default in ("", ()):
            return ""
        return _show(self.default)

    def summary(self, names: str, *, by_flag: bool = False) -> str:
        """Return what it is, with limits, default and where it has an effect.

        Args:
            names: says where the names that may be given are listed.
            by_flag: for the command's help.
        """
        notes = [
            self.limits,
            names if self.opt.choices else "",
            f"for {', '.join(self.opt.only)}" if self.opt.only else "",
            f"default: {self.default_text}" if self.default_text else "",
        ]
        noted = "; ".join(note for note in notes if note)
        doc = self.opt.flag_doc or self.opt.doc if by_flag else self.opt.doc
        return f"{doc} ({noted})" if noted else doc


def _show(value: Any) -> str:
    """Return a limit or a default as text."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:g}"
    if isinstance(value, int) and value == sys.maxsize:
        return "2**63 - 1"
    return str(value)


def _split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return an annotation's type and its metadata."""
    metadata = getattr(annotation, "__metadata__", ())
    return (annotation.__origin__, metadata) if metadata else (annotation, ())


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Return a type without None, and whether None was in it."""
    if isinstance(hint, ForwardRef):
        text = hint.__forward_arg__
        return (text.removesuffix(" | None"), True) if text.endswith(" | None") else (text, False)
    if get_origin(hint) not in (Union, types.UnionType) or type(None) not in get_args(hint):
        return hint, False
    kept = tuple(each for each in get_args(hint) if each is not type(None))
    return Union[kept], True  # noqa: UP007 (made of what is known at run time)


def _option(name: str, annotation: Any, default: Any) -> Option:
    """Return the option that a field declares."""
    from .kinds import kind_of

    hint, metadata = _split(annotation)
    opt = next((each for each in metadata if isinstance(each, Opt)), None)
    if opt is None:
        raise TypeError(f"{name} declares no option: annotate it with Opt(...)")
    limits = next((each for each in metadata if isinstance(each, Range)), Range(-math.inf))
    bare, optional = _without_none(hint)
    kind = opt.kind or kind_of(name, bare, opt)
    return Option(name, bare, optional, opt.default if default is None else default, opt, *limits, kind)


_DECLARED: dict[type, Mapping[str, Option]] = {}


def declared(owner: type) -> Mapping[str, Option]:
    """Return the options that a TypedDict or a group declares, in order: name -> option."""
    if owner in _DECLARED:
        return _DECLARED[owner]
    fields = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
    annotations = {field.name: field.type for field in fields} or dict(owner.__annotations__)
    if any(isinstance(annotation, (str, ForwardRef)) for annotation in annotations.values()):
        annotations = get_type_hints(owner, include_extras=True)  # of a module that postpones them
    defaults = {field.name: field.default for field in fields}
    options = [_option(name, annotation, defaults.get(name)) for name, annotation in annotations.items()]
    found = types.MappingProxyType({option.name: option for option in options})
    _DECLARED[owner] = found
    return found
