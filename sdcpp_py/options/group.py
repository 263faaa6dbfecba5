"""Options that belong together and are passed as one object: what all such classes share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ArgumentError
from .checks import show
from .declare import declared
from .kinds import Kind, UnreadableError

if TYPE_CHECKING:
    from .declare import Option


class Group:
    """Base of frozen dataclasses whose fields are declared options; they check themselves.

    Attributes:
        enabled: the engine's field that switches the group on; empty where there is none.
        expected: what may be passed for one, for messages.
        by_flag: the field that the group's own flag may give; empty where that is a switch.
    """

    enabled: ClassVar[str] = ""
    expected: ClassVar[str] = ""
    by_flag: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, option in declared(type(self)).items():
            value = getattr(self, name)
            checked = option.check(value, f"{type(self).__name__}.{name}")
            if checked is not value:
                object.__setattr__(self, name, checked)
        self._check_together()

    def _check_together(self) -> None:
        """Raise ArgumentError for fields that do not go together."""

    @classmethod
    def of(cls, value: Any) -> Group | None:
        """Return what a shorter value stands for, None for nothing; raise TypeError unless it stands for one."""
        raise TypeError

    def given(self) -> dict[str, Any]:
        """Return the fields that are not None."""
        return {name: value for name in declared(type(self)) if (value := getattr(self, name)) is not None}

    def without(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that are not None, but for those that some others take the place of."""
        return self.given()

    def settle(self, used: dict[str, Any], around: Mapping[str, Any]) -> None:
        """Change what is noted as used where fields overrule each other.

        Args:
            used: plain values of the fields that were given or are the engine's own.
            around: the same of the options that the group stands among.
        """


class Grouped(Kind):
    """An object of a group class."""

    metavar = ""

    def __init__(self, owner: type[Group]) -> None:
        self.owner = owner

    def check(self, name: str, value: Any, option: Option) -> Group | None:
        """Return an object of the class; those check themselves."""
        if isinstance(value, self.owner):
            return value
        try:
            return self.owner.of(value)
        except TypeError:
            expected = self.owner.expected or f"a {self.owner.__name__}"
            raise ArgumentError(f"{name} must be {expected}, not {show(value)}") from None
        except ArgumentError as error:
            raise ArgumentError(f"{name}: {error}") from None

    def resolve(self, name: str, value: Any, option: Option) -> Any:
        """Return the object with names as the engine spells them."""
        fields = declared(self.owner)
        changed = {key: fields[key].resolve(each, f"{name}.{key}") for key, each in value.given().items()}
        return dataclasses.replace(value, **changed)

    def engine_value(self, name: str, value: Any, option: Option) -> dict[str, Any]:
        """Return the engine's fields."""
        fields = declared(self.owner)
        made: dict[str, Any] = {self.owner.enabled: True} if self.owner.enabled else {}
        for key, each in value.given().items():
            made[fields[key].opt.field] = fields[key].kind.engine_value(f"{name}.{key}", each, fields[key])
        return made

    def plain(self, value: Any) -> dict[str, Any]:
        """Return the fields that were given, as far as they can be written."""
        fields = declared(self.owner)
        return {key: fields[key].kind.plain(each) for key, each in value.given().items() if fields[key].kind.written}

    def used(self, value: Any, defaults: Mapping[str, Any], around: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that were used, with the engine's own where those matter.

        Args:
            value: the object.
            defaults: the engine's own, by engine field.
            around: as Group.settle takes it.
        """
        own = {
            key: defaults[option.opt.field]
            for key, option in declared(self.owner).items()
            if option.opt.always and defaults.get(option.opt.field) is not None
        }
        used = {**own, **self.plain(value)}
        value.settle(used, around)
        return {key: used[key] for key in declared(self.owner) if key in used}

    def text(self, value: Any, option: Option) -> str:
        """Return that there is one; its fields are written by themselves."""
        return "True"

    def from_text(self, text: str, option: Option) -> Any:
        """Return the object that True stands for; its fields are read by themselves."""
        if text != "True":
            raise UnreadableError(f"{show(text)} is not True")
        return self.owner.of(True)
