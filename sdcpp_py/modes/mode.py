"""What a mode is: the options that a call takes, and the engine's struct that they fill."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import engine
from ..options.declare import Option, declared
from ..options.group import Grouped
from ..options.groups import PhotoMaker
from ..options.kinds import Kind, Picture
from ..options.schema import Names, object_schema
from ..options.values import engine_fields, nest, resolve, take
from .inputs import Abilities, Prepared


def takes_pictures(kind: Kind) -> bool:
    """Tell whether an option takes pictures, which no text can hold."""
    return isinstance(kind, Picture) or (isinstance(kind, Grouped) and kind.owner is PhotoMaker)


@dataclass(frozen=True)
class Mode:
    """One kind of call.

    Attributes:
        name: of the method and of the command.
        title: one line of help.
        subject: the options that may be passed by position, as a TypedDict.
        options: the others.
        struct: the engine's struct that they fill.
        prepare: brings checked values in order, once it is known what the model is able to do.
        takes_size: whether pictures that go in say the size, where it is not given.
    """

    name: str
    title: str
    subject: type
    options: type
    struct: str
    prepare: Callable[[dict[str, Any], Abilities], Prepared] | None = None
    takes_size: bool = False

    @functools.cached_property
    def declared(self) -> Mapping[str, Option]:
        """Every option, those of the subject first."""
        return {**declared(self.subject), **declared(self.options)}

    def pictures_beside(self, values: Mapping[str, Any]) -> list[str]:
        """Return the names of the options that are given pictures, but for those of the subject."""
        taking = [name for name, option in declared(self.options).items() if takes_pictures(option.kind)]
        return [name for name in taking if values.get(name) is not None]

    def check(self, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return a value for every option, checked as far as that needs no engine.

        Raises:
            TypeError: an option is unknown or missing.
            ArgumentError: a value is of the wrong type or out of range.
        """
        return take(self.declared, values, defaults or {}, self.name)

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return checked values with names as the engine spells them.

        Raises:
            ArgumentError: the engine knows no such name; the message lists those it knows.
        """
        return resolve(self.declared, values)

    def fields(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the engine's fields for resolved values, nested as they are there.

        Raises:
            ModelError: a file that a value names is missing or damaged.
        """
        return nest(engine_fields(self.declared, values))

    def schema(self, names: Names | None = engine.enum_names) -> dict[str, Any]:
        """Return the JSON schema of the options; *names* lists those of an engine's enum, None leaves them out."""
        return object_schema(self.declared, names)
