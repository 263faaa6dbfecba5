"""Signatures and help of functions that take declared options, for ``help()`` and ``inspect``.

Type checkers read ``Unpack[...]`` of the set of options instead; both come from the same declarations.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from .declare import REQUIRED, Option

_WIDTH = 116


def arguments(options: Mapping[str, Option]) -> str:
    """Return the ``Args:`` section of a docstring, not indented."""
    lines = ["Args:"]
    for name, option in options.items():
        line = "   "
        # Not textwrap: this is done for every option whenever the package is imported.
        for word in f"{name}: {option.summary('see choices()')}.".split():
            if len(line) + len(word) >= _WIDTH:
                lines.append(line)
                line = "       "
            line += f" {word}"
        lines.append(line)
    return "\n".join(lines)


def with_arguments(doc: str | None, options: Mapping[str, Option]) -> str:
    """Return a docstring with the section of its arguments before that of what it returns or raises."""
    parts = inspect.cleandoc(doc or "").split("\n\n")
    end = next((i for i, part in enumerate(parts) if part.startswith(("Returns:", "Raises:"))), len(parts))
    return "\n\n".join([*parts[:end], arguments(options), *parts[end:]])


def describe(function: Any, subject: Mapping[str, Option], options: Mapping[str, Option], doc: Any = None) -> None:
    """Give a method the signature, the annotations and the help of its options.

    Args:
        function: the method; it takes *subject* by position and the others by keyword.
        subject: the options that may be passed by position.
        options: the others.
        doc: what gets the help instead of the function, such as its class.
    """
    kinds = inspect.Parameter
    parameters = [kinds("self", kinds.POSITIONAL_OR_KEYWORD)]
    for name, option in {**subject, **options}.items():
        parameters.append(
            kinds(
                name,
                kinds.POSITIONAL_OR_KEYWORD if name in subject else kinds.KEYWORD_ONLY,
                default=kinds.empty if option.default is REQUIRED else option.default,
                annotation=option.type | None if option.optional and not isinstance(option.type, str) else option.type,
            )
        )
    signature = inspect.signature(function)
    function.__signature__ = signature.replace(parameters=parameters)
    returns = {"return": function.__annotations__.get("return")}
    function.__annotations__ = {each.name: each.annotation for each in parameters[1:]} | returns
    target = doc or function
    target.__doc__ = with_arguments(target.__doc__, {**subject, **options})
