"""How the values of options are checked, read from a command line, handed to the engine, and written as text."""

from __future__ import annotations

import itertools
import os
import re
import typing
import unicodedata
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, ClassVar

from .. import engine
from ..errors import ArgumentError
from ..model_files import StrPath, check_model_file, encode_path
from .checks import check_bool, check_choice, check_float, check_int, check_path, check_text, show

if TYPE_CHECKING:
    from .declare import Opt, Option


MAX_PROMPT = 100_000
MAX_ITEMS = 10_001
"""Of any list: the noise levels of the most steps that there may be."""


class UnreadableError(ValueError):
    """A text on the command line that is no value of its option; the message says what would be one."""


def number_text(value: float) -> str:
    """Return a number as short as it can be read back."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def check_count(name: str, items: Sized) -> None:
    """Raise ArgumentError for a list that is longer than any may be."""
    if len(items) > MAX_ITEMS:
        raise ArgumentError(f"{name} must have at most {MAX_ITEMS} members")


class Kind:
    """A kind of values: text, until a derived class says otherwise.

    Attributes:
        schema: what JSON schema says of it.
        metavar: what the command's help calls a value.
        written: whether pictures can carry it as text.
        in_json: whether a JSON object can hold it.
        several: whether its flag may be given more than once; reading then gives a part of the value.
    """

    schema: ClassVar[Mapping[str, Any]] = {"type": "string"}
    metavar: ClassVar[str] = "TEXT"
    written: ClassVar[bool] = True
    several: ClassVar[bool] = False
    in_json: ClassVar[bool] = True

    def check(self, name: str, value: Any, option: Option) -> Any:
        """Return the value as plain Python, or raise ArgumentError that begins with *name*; needs no engine."""
        text = check_text(name, value)
        if option.opt.pattern and not re.fullmatch(option.opt.pattern, text):
            raise ArgumentError(f"{name} {show(text)} is not {option.opt.metavar or 'understood'}")
        return text

    def resolve(self, name: str, value: Any, option: Option) -> Any:
        """Return a checked value with names as the engine spells them."""
        return value

    def engine_value(self, name: str, value: Any, option: Option) -> Any:
        """Return what the engine's field takes for a resolved value; files are looked at."""
        return value

    def plain(self, value: Any) -> Any:
        """Return a resolved value for reports, of JSON's types."""
        return value

    def text(self, value: Any, option: Option) -> str:
        """Return a plain value as pictures carry it."""
        return (option.opt.titles or {}).get(str(value), str(value))

    def from_text(self, text: str, option: Option) -> Any:
        """Return the value, unchecked, that pictures carry as a text, or raise UnreadableError; text() reversed."""
        titles = {title: name for name, title in (option.opt.titles or {}).items()}
        return titles[text] if text in titles else self.read(text, option)

    def read(self, text: str, option: Option) -> Any:
        """Return the value that a text on the command line means, unchecked, or raise UnreadableError."""
        return text


class Prompt(Kind):
    """What text encoders are told."""

    def check(self, name: str, value: Any, option: Option) -> str:
        """Return the text."""
        text = check_text(name, value)
        if len(text) > MAX_PROMPT:
            raise ArgumentError(f"{name} must have at most {MAX_PROMPT} characters, not {len(text)}")
        return text

    def engine_value(self, name: str, value: Any, option: Option) -> str:
        """Return the text with composed characters (NFC), as the tokenizers' own pipelines compose them."""
        return unicodedata.normalize("NFC", value)


class Choice(Kind):
    """A name that the engine knows."""

    metavar = "NAME"

    def names(self, option: Option) -> list[str]:
        """Return the names that the engine knows."""
        return [name for name in engine.enum_names(option.opt.choices) if name not in option.opt.without]

    def resolve(self, name: str, value: Any, option: Option) -> Any:
        """Return the engine's spelling."""
        return check_choice(name, value, self.names(option))

    def engine_value(self, name: str, value: Any, option: Option) -> Any:
        """Return the name, or the number where the engine has no converter."""
        return engine.cache_mode(value) if option.opt.choices == "cache" else value


class Integer(Kind):
    """A whole number."""

    schema: ClassVar[Mapping[str, Any]] = {"type": "integer"}
    metavar = "INT"

    def check(self, name: str, value: Any, option: Option) -> int:
        """Return the number."""
        return check_int(name, value, int(option.low), int(option.high), multiple=option.multiple)

    def read(self, text: str, option: Option) -> int:
        """Return the number."""
        try:
            return int(text)
        except ValueError:
            raise UnreadableError(f"{show(text)} is not a whole number") from None


class Number(Kind):
    """A number."""

    schema: ClassVar[Mapping[str, Any]] = {"type": "number"}
    metavar = "NUMBER"

    def check(self, name: str, value: Any, option: Option) -> float:
        """Return the number."""
        return check_float(name, value, option.low, option.high)

    def text(self, value: Any, option: Option) -> str:
        """Return the number."""
        return number_text(value)

    def read(self, text: str, option: Option) -> float:
        """Return the number."""
        try:
            return float(text)
        except ValueError:
            raise UnreadableError(f"{show(text)} is not a number") from None


class Switch(Kind):
    """True or False."""

    schema: ClassVar[Mapping[str, Any]] = {"type": "boolean"}
    metavar = ""

    def check(self, name: str, value: Any, option: Option) -> bool:
        """Return the bool."""
        return check_bool(name, value)

    def read(self, text: str, option: Option) -> bool:
        """Return the meaning of one of the option's words, or of 1 and 0."""
        no, yes = option.opt.words or ("0", "1")
        if text not in (no, yes):
            raise UnreadableError(f"{show(text)} is neither {no} nor {yes}")
        return text == yes

    def from_text(self, text: str, option: Option) -> bool:
        """Return the bool."""
        if text not in ("False", "True"):
            raise UnreadableError(f"{show(text)} is neither False nor True")
        return text == "True"


class Said(Switch):
    """True or False, of which pictures carry a phrase."""

    def __init__(self, phrase: str) -> None:
        self.phrase = phrase

    def text(self, value: Any, option: Option) -> str:
        """Return the phrase."""
        return self.phrase if value else ""

    def from_text(self, text: str, option: Option) -> bool:
        """Return True for the phrase."""
        if text != self.phrase:
            raise UnreadableError(f"{show(text)} is not {self.phrase}")
        return True


class File(Kind):
    """A model file."""

    metavar = "FILE"

    def check(self, name: str, value: Any, option: Option) -> Any:
        """Return the path as it was given."""
        return check_path(name, value)

    def engine_value(self, name: str, value: Any, option: Option) -> bytes:
        """Return the path as bytes after a look at the file."""
        return check_model_file(value, option.opt.label or name)

    def plain(self, value: StrPath) -> str:
        """Return the name without directory and suffix: what a picture may tell of its maker's disk."""
        name = os.fsdecode(os.path.basename(os.fspath(value)))
        return os.path.splitext(name)[0].encode("utf-8", "backslashreplace").decode("utf-8")


class Folder(Kind):
    """A folder of files that are found by name."""

    metavar = "DIR"
    written = False

    def check(self, name: str, value: Any, option: Option) -> Any:
        """Return the path as it was given."""
        return check_path(name, value)


class Target(File):
    """A file that is written."""

    def engine_value(self, name: str, value: Any, option: Option) -> bytes:
        """Return the path as bytes."""
        return encode_path(value, option.opt.label or name)


class Items(Kind):
    """Several numbers."""

    metavar = "N,N,..."

    def __init__(self, of: Kind) -> None:
        self.of = of
        self.schema = {"type": "array", "items": dict(of.schema)}  # type: ignore[misc]

    def check(self, name: str, value: Any, option: Option) -> tuple[Any, ...]:
        """Return the numbers as a tuple."""
        if isinstance(value, (str, bytes, Mapping)):
            raise ArgumentError(f"{name} must be several numbers, not {show(value)}")
        try:
            items = list(itertools.islice(value, MAX_ITEMS + 1))
        except (MemoryError, RecursionError):
            raise
        except Exception:  # TypeError, or whatever a foreign iterator raises
            raise ArgumentError(f"{name} must be several numbers, not {show(value)}") from None
        check_count(name, items)
        return tuple(self.of.check(f"{name}[{index}]", item, option) for index, item in enumerate(items))

    def plain(self, value: Any) -> list[Any]:
        """Return the numbers as a list."""
        return list(value)

    def text(self, value: Any, option: Option) -> str:
        """Return the numbers, separated by commas."""
        return ", ".join(self.of.text(item, option) for item in value)

    def read(self, text: str, option: Option) -> list[Any]:
        """Return the numbers."""
        try:
            return [self.of.read(part.strip(), option) for part in text.split(",")]
        except UnreadableError as error:
            raise UnreadableError(f"needs numbers separated by commas: {error}") from None


class Callback(Kind):
    """A function that hears of progress; True for a bar, False for none."""

    written = False
    in_json = False

    def check(self, name: str, value: Any, option: Option) -> Any:
        """Return it."""
        if callable(value) or isinstance(value, bool):
            return value
        raise ArgumentError(f"{name} must be a function, True or False, not {show(value)}")


class Place(Kind):
    """A device or a policy, or one by module; ``placement`` knows which there are."""

    metavar = "SPEC"
    written = False
    schema: ClassVar[Mapping[str, Any]] = {"type": ["string", "object"], "additionalProperties": {"type": "string"}}

    def check(self, name: str, value: Any, option: Option) -> Any:
        """Return it."""
        if isinstance(value, str):
            return value
        if isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair):
            return value
        raise ArgumentError(f"{name} must be a name or a mapping of module to name, not {show(value)}")


class Embeddings(Kind):
    """Textual inversions: name -> file."""

    metavar = "NAME=FILE"
    written = False
    several = True
    schema: ClassVar[Mapping[str, Any]] = {"type": "object", "additionalProperties": {"type": "string"}}

    def check(self, name: str, value: Any, option: Option) -> dict[str, Any]:
        """Return them as a dict."""
        if not isinstance(value, Mapping):
            raise ArgumentError(f"{name} must be a mapping of name to file, not {show(value)}")
        return {check_text(f"{name}: a name", key): check_path(f"{name}[{key!r}]", path) for key, path in value.items()}

    def engine_value(self, name: str, value: Any, option: Option) -> dict[str, bytes]:
        """Return name -> path after a look at the files."""
        return {key: check_model_file(path, f"embedding {key}") for key, path in value.items()}

    def read(self, text: str, option: Option) -> dict[str, str]:
        """Return what ``NAME=FILE``, a file or a directory of files means."""
        name, separator, path = text.partition("=")
        if separator and not os.path.exists(text):
            return {name: path}
        if not os.path.isdir(text):
            return {os.path.splitext(os.path.basename(text))[0]: text}
        files = sorted(os.listdir(text))
        return {os.path.splitext(each)[0]: os.path.join(text, each) for each in files if not each.startswith(".")}


class Picture(Kind):
    """A picture that goes in."""

    metavar = "FILE"
    written = False
    schema: ClassVar[Mapping[str, Any]] = {"type": "string", "contentEncoding": "base64"}

    def check(self, name: str, value: Any, option: Option) -> Any:
        """Return it as an RGB image."""
        from ..pictures import open_picture

        return open_picture(value, name)

    def engine_value(self, name: str, value: Any, option: Option) -> Any:
        """Return it as an array of shape (height, width, channels)."""
        from ..pictures import to_pixels

        return to_pixels(value)

    def read(self, text: str, option: Option) -> Any:
        """Return the picture in a file, or raise ArgumentError when there is none."""
        return self.check(option.flags[0], text, option)


class Layers(Picture):
    """A picture that goes in with the channels that it has."""

    def check(self, name: str, value: Any, option: Option) -> Any:
        """Return it as an L, LA, RGB or RGBA image."""
        from ..pictures import open_layers

        return open_layers(value, name)


class Mask(Picture):
    """A picture that says where something happens."""

    def check(self, name: str, value: Any, option: Option) -> Any:
        """Return it as an L image."""
        from ..pictures import open_mask

        return open_mask(value, name)


class Pictures(Picture):
    """Pictures that go in."""

    metavar = "DIR"
    schema: ClassVar[Mapping[str, Any]] = {"type": "array", "items": dict(Picture.schema)}

    def check(self, name: str, value: Any, option: Option) -> tuple[Any, ...]:
        """Return them as RGB images."""
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
            raise ArgumentError(f"{name} must be several pictures, not {show(value)}")
        if not value:
            raise ArgumentError(f"{name} needs at least one picture")
        return tuple(super(Pictures, self).check(f"{name}[{index}]", each, option) for index, each in enumerate(value))

    def engine_value(self, name: str, value: Any, option: Option) -> list[Any]:
        """Return them as arrays of shape (height, width, 3)."""
        return [super(Pictures, self).engine_value(name, each, option) for each in value]

    def read(self, text: str, option: Option) -> list[Any]:
        """Return the pictures of a directory, by name."""
        if not os.path.isdir(text):
            raise ArgumentError(f"{option.flags[0]} {text!r} is not a directory of pictures")
        return [super(Pictures, self).check(option.flags[0], each, option) for each in _files(text)]


def _files(folder: str) -> list[str]:
    """Return the files of a folder, by name."""
    return [os.path.join(folder, each) for each in sorted(os.listdir(folder)) if not each.startswith(".")]


def _several(value: Any) -> Any:
    """Return what may be one picture as several."""
    alone = isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, Mapping))
    return [value] if alone else value


class Portraits(Pictures):
    """Pictures of a person: several, one alone, or a folder of them."""

    def check(self, name: str, value: Any, option: Option) -> tuple[Any, ...]:
        """Return them as RGB images."""
        if isinstance(value, (str, os.PathLike)) and os.path.isdir(value):
            value = _files(os.fsdecode(value))
        return super().check(name, _several(value), option)


class Frames(Pictures):
    """The pictures of a video that goes in, one for each frame; a Video is one."""


class References(Pictures):
    """Pictures that go in, each by a flag of its own; one alone may be passed without a list."""

    metavar = "FILE"
    several = True

    def check(self, name: str, value: Any, option: Option) -> tuple[Any, ...]:
        """Return them as RGB images."""
        if value is None:
            raise ArgumentError(f"{name} must be a picture or several, not None")
        return super().check(name, _several(value), option)

    def read(self, text: str, option: Option) -> list[Any]:
        """Return the picture in a file."""
        return [Picture.check(self, option.flags[0], text, option)]


_OF_TYPE: dict[Any, Callable[[], Kind]] = {
    bool: Switch,
    int: Integer,
    float: Number,
    str: Kind,
    StrPath: File,
    Sequence[int]: lambda: Items(Integer()),
    Sequence[float]: lambda: Items(Number()),
}


def kind_of(name: str, hint: Any, opt: Opt) -> Kind:
    """Return the kind of values of a type."""
    from .group import Group, Grouped

    if opt.choices and hint is str:
        return Choice()
    for each in typing.get_args(hint) or (hint,):
        if isinstance(each, type) and issubclass(each, Group):
            return Grouped(each)
    made = _OF_TYPE.get(hint)
    if made is None and set(typing.get_args(hint)) == set(typing.get_args(StrPath)):
        made = File
    if made is None:
        raise TypeError(f"{name}: what to do with {hint} is not known; declare its kind")
    return made()
