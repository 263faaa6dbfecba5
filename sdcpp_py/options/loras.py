"""LoRAs as options: one, and several in the forms that callers, flags and pictures have."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ..errors import ArgumentError
from ..model_files import StrPath
from .checks import show
from .declare import Opt, Option, Range
from .group import Group, Grouped
from .kinds import Kind, UnreadableError, number_text

HIGH_NOISE = "|high_noise|"
"""What stands before the name of a LoRA for the high-noise model, as sd-cli has it."""
_STRENGTH = re.compile(
    r"(?P<of>te=|unet=)?(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|[-+]?(?:nan|inf|infinity))", re.IGNORECASE
)
_STRENGTHS = ("te", "unet")
"""What the numbers behind a LoRA's name are for, unless they say it: the text encoders, and the diffusion model."""
_LORA_TEXT = re.compile(
    rf'(?P<high>{re.escape(HIGH_NOISE)})?((?P<quoted>"(?:\\.|[^"\\])*")|(?P<name>.+?)): '
    r"(?P<multiplier>[-+.\de]+)(?: \(te (?P<te>[-+.\de]+)\))?(, |$)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Lora(Group):
    """A LoRA to apply during one generation."""

    path: Annotated[StrPath, Opt("file of the LoRA, safetensors or GGUF", field="path", label="LoRA")]
    multiplier: Annotated[
        float,
        Range(-100.0, 100.0),
        Opt("its strength; 0 has no effect, 1 is the strength it was trained at", field="multiplier"),
    ] = 1.0
    is_high_noise: Annotated[
        bool, Opt("apply it to the high-noise diffusion model, for families that have two", field="is_high_noise")
    ] = False
    te_multiplier: Annotated[
        float | None,
        Range(-100.0, 100.0),
        Opt("its strength for the text encoders", field="te_difference", engine_default="multiplier"),
    ] = None


def as_loras(loras: Any, name: str = "loras") -> tuple[Lora, ...]:
    """Return LoRAs given as Lora objects, paths, or a mapping of path to multiplier."""
    wanted = "Lora objects, paths or a mapping of path to multiplier"
    pairs: list[Any]
    if isinstance(loras, Mapping):
        pairs = list(loras.items())
    else:
        if isinstance(loras, (str, bytes, os.PathLike, Lora)):
            loras = [loras]
        if not isinstance(loras, Sequence):
            raise ArgumentError(f"{name} must be {wanted}, not {show(loras)}")
        pairs = [each if isinstance(each, Lora) else (each,) for each in loras]
    try:
        return tuple(each if isinstance(each, Lora) else Lora(*each) for each in pairs)
    except ArgumentError as error:
        raise ArgumentError(f"{name} must be {wanted}: {error}") from None


def _readings(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield what NAME:NUMBER:NUMBER may mean, the likeliest first: a name, which may hold colons, and numbers."""
    parts = text.split(":")
    count = 0
    while count < min(len(_STRENGTHS), len(parts) - 1) and _STRENGTH.fullmatch(parts[-1 - count].strip()):
        count += 1
    for kept in range(count, -1, -1):
        yield ":".join(parts[: len(parts) - kept]), parts[len(parts) - kept :]


def called(text: str, holds: Callable[[str], bool], find: Callable[[str], StrPath], what: str) -> Lora:
    """Return the LoRA that a text means, as A1111 has it: ``NAME``, ``NAME:STRENGTH`` or ``NAME:TE:UNET``.

    Of two numbers the first is for the text encoders and the second for the diffusion model; ``te=`` and ``unet=``
    before one say which it is. ``|high_noise|`` before the name is as in sd-cli's prompts.

    Args:
        text: the text.
        holds: tells whether there is a file of a name, which may hold colons and numbers itself.
        find: returns the path that a name means.
        what: stands for it in messages.

    Raises:
        ArgumentError: a strength is out of range; or what *find* raises.
    """
    is_high_noise = text.startswith(HIGH_NOISE)
    readings = list(_readings(text.removeprefix(HIGH_NOISE)))
    name, numbers = next((each for each in readings if holds(each[0])), readings[0])
    strengths: dict[str, float] = {}
    for position, each in zip(_STRENGTHS, numbers, strict=False):
        if match := _STRENGTH.fullmatch(each.strip()):
            strengths[(match["of"] or position).rstrip("=").lower()] = float(match["number"])
    te = strengths.get("te", 1.0)
    unet = strengths.get("unet", te)
    path = find(name)
    try:
        return Lora(path, unet, is_high_noise, None if te == unet else te)
    except ArgumentError as error:
        raise ArgumentError(f"{what}: {re.sub('^Lora.[a-z_]*', 'a strength', str(error))}") from None


def _named(name: str) -> str:
    """Return a LoRA's name as pictures carry it: quoted where it could be read otherwise."""
    plain = not name.startswith(('"', HIGH_NOISE)) and ": " not in name
    return name if plain else json.dumps(name, ensure_ascii=False)


class Loras(Kind):
    """LoRAs, in any of the forms that as_loras takes."""

    metavar = "FILE[:STRENGTH]"
    several = True
    schema = {"type": "array", "items": {"type": "string"}}  # noqa: RUF012 (as the base class has it)
    _each = Grouped(Lora)

    def check(self, name: str, value: Any, option: Option) -> tuple[Lora, ...]:
        """Return Lora objects."""
        return as_loras(value, name)

    def engine_value(self, name: str, value: Any, option: Option) -> list[dict[str, Any]]:
        """Return the engine's structs after a look at the files."""
        made = [self._each.engine_value("LoRA", lora, option) for lora in value]
        for fields in made:
            if "te_difference" in fields:
                fields["te_difference"] -= fields["multiplier"]
        return made

    def plain(self, value: Any) -> list[dict[str, Any]]:
        """Return names and strengths."""
        return [self._each.plain(lora) for lora in value]

    def text(self, value: Any, option: Option) -> str:
        """Return names and strengths."""
        return ", ".join(
            f"{HIGH_NOISE if lora.get('is_high_noise') else ''}{_named(lora['path'])}: "
            f"{number_text(lora['multiplier'])}"
            f"{'' if (te := lora.get('te_multiplier')) is None else f' (te {number_text(te)})'}"
            for lora in value
        )

    def from_text(self, text: str, option: Option) -> list[Lora]:
        """Return LoRAs whose paths are bare names, which are looked for in the folder of LoRAs."""
        found = []
        rest = text
        while rest:
            match = _LORA_TEXT.match(rest)
            if match is None:
                raise UnreadableError(f"{show(text)} is not NAME: MULTIPLIER, ...")
            try:
                name = json.loads(match["quoted"]) if match["quoted"] else match["name"]
                te = None if match["te"] is None else float(match["te"])
                found.append(Lora(name, float(match["multiplier"]), bool(match["high"]), te))
            except ValueError:  # ArgumentError is one
                raise UnreadableError(f"{show(match[0])} is not NAME: MULTIPLIER") from None
            rest = rest[match.end() :]
        return found

    def read(self, text: str, option: Option) -> list[Lora]:
        """Return what ``PATH``, ``PATH:STRENGTH`` or ``PATH:TE:UNET`` means, as :func:`called` reads it."""

        def find(path: str) -> str:
            if not path:
                raise UnreadableError(f"{show(text)} names no file")
            return path

        return [called(text, os.path.exists, find, f"{option.flags[0]} {show(text)}")]
