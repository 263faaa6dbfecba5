"""The lines of a batch: JSON objects of options, or prompts; each picture that they ask for, and what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ArgumentError, SdcppError
from ..images import failure_reason
from ..model_files import show_path
from ..modes import TXT2IMG, UPSCALE, make_request
from ..options.checks import show
from ..options.json_values import built, replaced
from ..server.intake import Bounds, Intake, decoded
from ..server.jobs import Request
from ..server.model_list import MODES, ServedModel, named_file

_ANY = Bounds(1 << 62, 1 << 62)  # of the caller's own pictures
_FIELDS = ("mode", "model", "name", "output")
_OUTPUT = ("format", "compression", "metadata")
_DRAWN_AT_ONCE = "batch_count"  # asked for by a line, drawn one by one: what ends a process costs one picture


class LinesError(ArgumentError):
    """Lines ask for what cannot be drawn.

    Args:
        message: one line.
        problems: ``FILE:LINE: message`` of each.
    """

    def __init__(self, message: str, problems: list[str]) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class Item:
    """One picture, or video, that is asked for.

    Attributes:
        line: number of its line, from 1.
        picture: which one of the line, from 1.
        mode: name of the mode.
        model: name of the model.
        options: as the line has them, those of the command below them; pictures are paths.
        output: format, compression and metadata of its file.
        name: of its file, without a suffix.
        key: tells whether the same was drawn before: a digest of the fields above, and of how often they came before.
    """

    line: int
    picture: int
    mode: str
    model: str
    options: Mapping[str, Any]
    output: Mapping[str, Any]
    name: str
    key: str


@dataclass
class Lines:
    """What makes pictures of lines.

    Args:
        models: by name, the default one first.
        folder: where paths of pictures begin.
        defaults: options of drawing that lines have unless they say otherwise.
        output: the same of files.
    """

    models: Mapping[str, ServedModel]
    folder: Path
    defaults: Mapping[str, Any] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._intake = Intake(self.models, _ANY, self._opened)

    def _opened(self, name: str, value: Any) -> bytes:
        """Return the file of a picture, by its path or as a data URL."""
        if not isinstance(value, str) or value.startswith("data:"):
            return decoded(name, value)
        try:
            return (self.folder / os.path.expanduser(value)).read_bytes()
        except (OSError, ValueError) as error:
            raise ArgumentError(f"{name} {show_path(value)} cannot be read ({failure_reason(error)})") from None

    def request(self, item: Item) -> Request:
        """Return what the scheduler is asked for a picture.

        Raises:
            SdcppError: it cannot be drawn, as far as that is known before the model is loaded.
        """
        return self._intake.request(item.mode, item.model, item.options, output=item.output, source="batch")

    def read(self, file: Path) -> list[Item]:
        """Return the pictures that a file asks for, in its order.

        Args:
            file: with the suffix ``.txt`` a prompt a line, else a JSON object of options a line, or a prompt in
                quotation marks. Empty lines are nothing.

        Raises:
            ArgumentError: the file cannot be read, or is empty.
            LinesError: any line is wrong; nothing may be drawn then.
        """
        items: list[Item] = []
        problems: list[str] = []
        seen: Counter[str] = Counter()
        names: dict[str, int] = {}
        count = 0
        for number, text in _texts(file):
            count += 1
            try:
                given = {"prompt": text} if file.suffix.lower() == ".txt" else _object(text)
                found = list(self._items(number, given, seen))
                for item in found:
                    if (before := names.setdefault(item.name.casefold(), number)) != number:
                        raise ArgumentError(f"name {show(item.name)} is that of a picture of line {before}, too")
                self._check(found[0])
                if "seed" in found[-1].options:
                    MODES[found[-1].mode].declared["seed"].check(found[-1].options["seed"])
                items += found
            except (SdcppError, TypeError) as error:
                problems.append(f"{show_path(file)}:{number}: {' '.join(str(error).split())}")
        if problems:
            verb = "is" if len(problems) == 1 else "are"
            raise LinesError(f"{len(problems)} of {count} lines {verb} wrong; nothing was drawn", problems)
        if not items:
            raise ArgumentError(f"{show_path(file)} holds no line; write a prompt or a JSON object into each")
        return items

    def _items(self, number: int, given: Mapping[str, Any], seen: Counter[str]) -> Iterator[Item]:
        """Yield the pictures of a line."""
        mode, model = given.get("mode", TXT2IMG.name), given.get("model")
        if not isinstance(mode, str) or mode not in MODES:
            raise ArgumentError(f"mode {show(mode)} is unknown; valid: {', '.join(MODES)}")
        if model is None:
            kind = "upscaler" if mode == UPSCALE.name else "model"
            model = next((name for name, each in self.models.items() if each.kind == kind), None)
            if model is None:
                raise ArgumentError("there is no upscaler here; name one with --upscaler-dir or in models.toml")
        if not isinstance(model, str):
            raise ArgumentError(f"model must be a name, not {show(model)}")
        declared = MODES[mode].declared
        own = {name: value for name, value in given.items() if name not in _FIELDS}
        options = {**{name: value for name, value in self.defaults.items() if name in declared}, **own}
        count, seed = options.get(_DRAWN_AT_ONCE), options.get("seed")
        if count is not None and _DRAWN_AT_ONCE in declared:
            count = declared[_DRAWN_AT_ONCE].check(count)
            del options[_DRAWN_AT_ONCE]
        output = self._output(mode, given.get("output"))
        name = _name(given.get("name"), number)
        for picture in range(1, (count or 1) + 1):
            drawn = {**options}
            if picture > 1 and isinstance(seed, int) and seed >= 0:
                drawn["seed"] = seed + picture - 1
            what = json.dumps([mode, model, drawn, output], sort_keys=True, default=repr)
            key = hashlib.sha256(f"{what} {seen[what]}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
            seen[what] += 1
            called = name if picture == 1 else f"{name}-{picture}"
            yield Item(number, picture, mode, model, drawn, output, called, key)

    def _output(self, mode: str, given: Any) -> dict[str, Any]:
        """Return how a line's files are written."""
        if given is not None and not isinstance(given, Mapping):
            raise ArgumentError(f"output must be an object with {', '.join(_OUTPUT)}, not {show(given)}")
        for name in given or {}:
            if name not in _OUTPUT:
                raise ArgumentError(f"output has no {show(name)}; it has {', '.join(_OUTPUT)}")
        return {**self.output, **(given or {})}

    def _check(self, item: Item) -> None:
        """Raise SdcppError for a line that cannot be drawn, as far as that is known before the model is loaded."""
        request = self.request(item)
        mode, served = MODES[item.mode], self.models[item.model]
        values = replaced(
            mode.declared,
            request.options,
            lambda name, value: Image.new("RGB", (64, 64), "white"),  # they were looked at
            lambda name, value: named_file(self.models, served, name, value),
        )
        options = built(mode.declared, values)
        if mode is UPSCALE:
            mode.check(options)
        else:
            make_request(mode, options, served.drawn_with, lora_folder=served.lora_folder)


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that are not empty, with their numbers."""
    try:
        with file.open(encoding="utf-8-sig") as opened:
            for number, text in enumerate(opened, 1):
                if stripped := text.strip():
                    yield number, stripped
    except UnicodeDecodeError:
        raise ArgumentError(f"{show_path(file)} is no UTF-8 text") from None
    except OSError as error:
        raise ArgumentError(f"{show_path(file)} cannot be read ({failure_reason(error)}); check the path") from None


def _object(text: str) -> dict[str, Any]:
    """Return the object of a line of JSON."""
    try:
        made = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentError(
            f"is no JSON: {error.msg} at character {error.pos + 1}; prompts alone go into a .txt file"
        ) from None
    except RecursionError:
        raise ArgumentError("is nested too deeply") from None
    if isinstance(made, str):
        return {"prompt": made}
    if not isinstance(made, dict):
        raise ArgumentError(f"must be an object of options or a prompt, not {show(made)}")
    return made


def _name(given: Any, number: int) -> str:
    """Return the name of a line's file: its own, or the line's number."""
    if given is None:
        return f"{number:06d}"
    if not isinstance(given, str) or not given.strip() or len(given) > 200 or not given.isprintable():
        raise ArgumentError(f"name must be that of a file, without a suffix, not {show(given)}")
    if given.startswith(".") or any(each in given for each in '/\\:*?"<>|'):
        raise ArgumentError(f"name {show(given)} cannot be that of a file; use letters, digits, - and _")
    return given
