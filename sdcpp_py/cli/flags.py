"""The flags of declared options: what a command takes, its help, and the options that given flags mean."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import SdcppError
from ..options.checks import fold
from ..options.declare import REQUIRED, Option, declared
from ..options.group import Grouped
from ..options.kinds import Choice, Integer, Number, Switch, UnreadableError
from .sd_cli import Foreign, answer
from .wording import wording

_NAMES = "see sdcpp doctor --names"


@dataclass(frozen=True)
class Target:
    """An option that a flag sets: one of a call, or a field of one that is a group, of the class *owner*."""

    path: tuple[str, ...]
    option: Option
    owner: str = ""


@dataclass(frozen=True, eq=False)
class Flag:
    """One flag of a command.

    Attributes:
        names: ``--steps`` and what else it is called.
        targets: the options that it sets.
    """

    names: tuple[str, ...]
    targets: tuple[Target, ...]

    @property
    def name(self) -> str:
        """The parameter's name, for Python."""
        return re.sub(r"\W", "_", self.names[0].lstrip("-"))

    @property
    def option(self) -> Option:
        """The first option that it sets."""
        return self.targets[0].option

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        kind, opt = self.option.kind, self.option.opt
        return (isinstance(kind, Switch) and opt.words is None and not opt.key) or (
            isinstance(kind, Grouped) and not kind.owner.by_flag
        )

    @property
    def may_stand_alone(self) -> bool:
        """Whether it may be given without its value."""
        return isinstance(self.option.kind, Grouped) and bool(self.option.kind.owner.by_flag)

    @property
    def type(self) -> Any:
        """The type that the command parses."""
        if self.is_switch:
            return bool
        if len(self.targets) == 1 and type(self.option.kind) in (Integer, Number):
            return int if isinstance(self.option.kind, Integer) else float
        return list[str] if self.option.kind.several else str

    @property
    def metavar(self) -> str | None:
        """What its value is called in the help."""
        if self.is_switch:
            return None
        if self.option.opt.key:
            return "KEY=VALUE,..."
        if self.option.opt.words:
            return "|".join(self.option.opt.words)
        return self.option.opt.metavar or self.option.kind.metavar

    def complete(self, incomplete: str) -> list[str]:
        """Return the values that begin with what is typed, for the shell; none where any text may be one."""
        kind, opt = self.option.kind, self.option.opt
        if opt.key:
            found = [f"{each.option.opt.key}=" for each in self.targets]
        elif isinstance(kind, Choice):
            try:
                found = kind.names(self.option)
            except SdcppError:  # the engine cannot be loaded; who runs the command is told
                found = []
        else:
            found = [*(opt.words or opt.suggest)]
        return [each for each in dict.fromkeys(found) if each.startswith(incomplete)]

    @property
    def help(self) -> str:
        """What it is, with limits and default, of every option that it sets."""
        if self.option.opt.key:
            modes = dict.fromkeys(each.option.opt.only for each in self.targets)
            return " ".join(f"For {', '.join(only)}: {self._keys(only)}." for only in modes)
        text = self.option.summary(_NAMES, by_flag=True)
        if self.is_switch and not self.option.opt.sets:
            # Without the default, which is that of the option and not of its opposite.
            text = f"do not {self.option.opt.flag_doc or self.option.opt.doc}"
        if len(self.targets) > 1 and self.is_switch:
            text = " and ".join(each.option.flags[0] for each in self.targets)
        return f"{text[0].upper()}{text[1:]}."

    def _keys(self, only: tuple[str, ...]) -> str:
        """Return the keys that have an effect in some modes, with what they are."""
        of_modes = [each.option for each in self.targets if each.option.opt.only == only]
        return "; ".join(
            f"{each.opt.key}= {replace(each, opt=replace(each.opt, only=())).summary('')}" for each in of_modes
        )


def _targets(options: Mapping[str, Option]) -> Iterator[Target]:
    """Yield the options that have flags, and the fields of groups likewise."""
    for name, option in options.items():
        if option.flags:
            yield Target((name,), option)
        if isinstance(option.kind, Grouped):
            for key, field in declared(option.kind.owner).items():
                if field.flags:
                    yield Target((name, key), field, option.kind.owner.__name__)


def flags(options: Mapping[str, Option]) -> list[Flag]:
    """Return the flags of options, in the order of their declaration; one that several name sets them all."""
    targets: dict[str, list[Target]] = {}
    for target in _targets(options):
        for name in target.option.flags:
            targets.setdefault(name, []).append(target)
    names: dict[tuple[Target, ...], list[str]] = {}
    for name, found in targets.items():
        names.setdefault(tuple(found), []).append(name)
    return [Flag(tuple(each), found) for found, each in names.items()]


class Formatter(Protocol):
    """What this file needs of a help formatter."""

    def section(self, name: str) -> AbstractContextManager[None]:
        """Open a section."""

    def write_dl(self, rows: list[tuple[str, str]]) -> None:
        """Write a list of definitions."""


def _explain(error: Exception, ctx: Any, args: Sequence[str]) -> None:
    """Make the line for a flag that is none say what to do, where it is one of sd-cli or of another command."""
    name = getattr(error, "option_name", "")
    if not name:
        return
    group, command = (ctx.command, "") if isinstance(ctx.command, TyperGroup) else (None, ctx.info_name or "")
    if ctx.parent is not None:
        group = ctx.parent.command
    commands = getattr(group, "commands", {})
    takers = {key: [opt for param in each.params for opt in param.opts] for key, each in commands.items()}
    if line := answer(name, args, command, takers):
        # Not an error of our own: typer may bring its own click, whose classes have no public name.
        vars(error).update(message=f"{line}.", possibilities=[])


class CommandGroup(TyperGroup):
    """A group of commands that says which one a flag without a command is of."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse."""
        given = [*args]
        try:
            return list(super().parse_args(ctx, args))
        except Exception as error:
            _explain(error, ctx, given)
            raise


class PanelCommand(TyperCommand):
    """A command whose help has its options under headings, in plain text, and whose flags may stand alone."""

    alone: frozenset[str] = frozenset()
    instead: str = ""
    """The flag with which none of the required ones must be given."""

    def format_options(self, ctx: Any, formatter: Formatter) -> None:
        """Write the options, those of each heading together."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row is not None:
                panels.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(row)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, after a flag that stands alone was given an empty value."""
        told = [
            f"{word}=" if word in self.alone and not re.match(r"[\d.]", after) else word
            for word, after in itertools.zip_longest(args, args[1:], fillvalue="")
        ]
        drawn_again = bool(self.instead) and any(word.partition("=")[0] == self.instead for word in args)
        required = [param for param in self.params if param.required]
        for param in required:
            param.required = not drawn_again
        try:
            return list(super().parse_args(ctx, told))
        except Exception as error:
            _explain(error, ctx, args)
            raise
        finally:
            for param in required:
                param.required = True


def take_flags(
    command: Callable[..., None], found: list[Flag], standing: Sequence[Foreign] = ()
) -> Callable[..., None]:
    """Return a command with flags added to its own: it is called with what was given, by the flag's name.

    Args:
        command: called with its own parameters and ``given``: flag -> value.
        found: the flags.
        standing: switches of sd-cli that say something to one of them.
    """
    known = {name: flag for flag in found for name in flag.names}
    switches = {re.sub(r"\W", "_", each.names[0].lstrip("-")): each for each in standing}

    def run(**values: Any) -> None:
        given = {flag: values.pop(flag.name) for flag in found}
        # Not by equality: 0 is given.
        nothing = (None, False)
        asked = {flag: value for flag, value in given.items() if not any(value is each for each in nothing)}
        for name, each in switches.items():
            if values.pop(name):
                flag = known[each.flag]
                asked[flag] = f"{asked[flag]},{each.value}" if flag in asked else each.value
        with wording(found):
            command(**values, given={flag: value for flag, value in asked.items() if value != []})

    own = [each for each in inspect.signature(command, eval_str=True).parameters.values() if each.name != "given"]
    added = []
    for flag in found:
        required = flag.option.default is REQUIRED and len(flag.targets[0].path) == 1
        option = typer.Option(
            *flag.names,
            help=flag.help,
            metavar=flag.metavar,
            rich_help_panel=flag.option.opt.panel,
            show_default=False,
            autocompletion=flag.complete,
        )
        default = inspect.Parameter.empty if required else (False if flag.is_switch else None)
        hint = flag.type if required or flag.is_switch else flag.type | None
        added.append(
            inspect.Parameter(
                flag.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
            )
        )
    for name, each in switches.items():
        panel = known[each.flag].option.opt.panel
        option = typer.Option(*each.names, help=f"As {each.flag} {each.value}.", rich_help_panel=panel)
        keyword = inspect.Parameter.KEYWORD_ONLY
        added.append(inspect.Parameter(name, keyword, default=False, annotation=Annotated[bool, option]))
    added += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    run.__signature__ = inspect.Signature(added)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in added}
    run.__doc__ = command.__doc__
    return run


def _keyed(flag: Flag, text: str, mode: str) -> Iterator[tuple[Target, Any]]:
    """Yield what ``KEY=VALUE,...`` sets."""
    for part in text.split(","):
        key, equals, value = part.partition("=")
        named = [each for each in flag.targets if fold(key) in (fold(each.option.opt.key), fold(each.path[-1]))]
        fitting = [each for each in named if fold(mode) in each.option.opt.only] or named
        if not equals or not fitting:
            known = ", ".join(dict.fromkeys(f"{each.option.opt.key}=" for each in flag.targets))
            raise UnreadableError(f"{part!r} is none of {known}")
        yield fitting[0], fitting[0].option.kind.read(value, fitting[0].option)


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one mapping of several, none of which may give a name that another gave."""
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name in joined and joined[name] != value:
                raise UnreadableError(f"{name!r} is given twice: {joined[name]} and {value}")
            joined[name] = value
    return joined


def _read(flag: Flag, value: Any, mode: str) -> Iterator[tuple[Target, Any]]:
    """Yield what one flag sets, with the values."""
    first = flag.targets[0]
    if flag.is_switch:
        for target in flag.targets:
            yield target, target.option.opt.sets
    elif flag.option.opt.key:
        yield from _keyed(flag, value, mode)
    elif len(flag.targets) > 1:
        parts = value.split("x")
        if len(parts) not in (1, len(flag.targets)):
            raise UnreadableError(f"{value!r} is not {flag.metavar}")
        for target, part in zip(flag.targets, parts * (len(flag.targets) if len(parts) == 1 else 1), strict=True):
            yield target, target.option.kind.read(part, target.option)
    elif flag.may_stand_alone:
        yield first, value
    elif isinstance(value, list):
        read = [first.option.kind.read(each, first.option) for each in value]
        yield first, _joined(read) if isinstance(read[0], dict) else list(itertools.chain.from_iterable(read))
    else:
        yield first, first.option.kind.read(value, first.option) if isinstance(value, str) else value


def _make_group(option: Option, fields: dict[str, Any], by: str, base: Any) -> Any:
    """Return the group that was given by its fields' flags, over one that was there before."""
    assert isinstance(option.kind, Grouped)
    known = declared(option.kind.owner)
    if isinstance(base, option.kind.owner):
        fields = {**base.without(fields), **fields}
    missing = [known[key].flags[0] for key in known if known[key].default is REQUIRED and key not in fields]
    if missing:
        raise typer.BadParameter(f"needs {' and '.join(missing)} too", param_hint=by)
    return option.kind.owner(**fields)


def options_of(
    given: Mapping[Flag, Any], options: Mapping[str, Option], base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the options that flags mean.

    Args:
        given: flag -> value, as take_flags passes them.
        options: the options that the flags are of.
        base: options that the flags add to, and overrule; of groups field by field.

    Raises:
        typer.BadParameter: a text is no value of its flag, or one flag needs another.
        ArgumentError: a group's field is out of range, or a picture cannot be read.
    """
    values: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    by: dict[str, str] = {}
    for flag, value in given.items():
        mode = groups.get(flag.targets[0].path[0], {}).get("mode", "")
        try:
            for target, each in _read(flag, value, mode):
                name, *field = target.path
                if field:
                    groups.setdefault(name, {})[field[0]] = each
                    by.setdefault(name, flag.names[0])
                elif isinstance(target.option.kind, Grouped):
                    fields = groups.setdefault(name, {})
                    if flag.may_stand_alone and each:
                        key = target.option.kind.owner.by_flag
                        inner = declared(target.option.kind.owner)[key]
                        fields[key] = inner.kind.read(each, inner)
                else:
                    values[name] = each
        except UnreadableError as error:
            raise typer.BadParameter(str(error), param_hint=flag.names[0]) from None
    base = base or {}
    for name, fields in groups.items():
        values[name] = _make_group(options[name], fields, by.get(name, ""), base.get(name))
    if "sigmas" in values or "steps" in values:
        # Each says what the other one does.
        base = {name: value for name, value in base.items() if name not in ("sigmas", "steps", "scheduler")}
    return {**base, **values}
