"""LoRAs by name: those of a folder, and the tags in a prompt that call them."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ArgumentError, ModelError
from .model_files import SUFFIXES, StrPath, check_folder, show_path
from .options import Lora, show
from .options.loras import HIGH_NOISE, called

# A1111's web UI calls LoRAs, LyCORIS and hypernetworks so.
_TAG = re.compile(r"<\s*(?P<kind>lora|lyco|hypernet)\s*:(?P<inner>[^<>]*)(?P<end>>?)", re.IGNORECASE)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True)
class LoraFolder:
    """A folder of LoRAs, sub-folders included.

    Attributes:
        path: the folder.
        shown: what messages call it, where they may not tell the path; empty for that.
    """

    path: str
    shown: str = ""

    @functools.cached_property
    def _files(self) -> dict[str, str]:
        """The files by their composed (NFC) name within the folder, with ``/`` between its parts."""
        found = {}
        for folder, _, files in os.walk(self.path):
            for file in sorted(files):
                if file.lower().endswith(SUFFIXES):
                    whole = os.path.join(folder, file)
                    found[_composed(os.path.relpath(whole, self.path).replace(os.sep, "/"))] = whole
        return found

    @property
    def names(self) -> list[str]:
        """The files' names within the folder, with ``/`` between their parts and without suffixes, sorted."""
        return sorted(os.path.splitext(each)[0] for each in self._files)

    def _matches(self, name: str) -> list[str]:
        """Return the names of the files that a name means: of all of it, else of its end."""
        wanted = _composed(name.replace(os.sep, "/"))
        names = [each for each in self._files if wanted in (each, os.path.splitext(each)[0])]
        ends = (f"/{wanted}", *(f"/{wanted}{suffix}" for suffix in SUFFIXES))
        return names or [each for each in self._files if each.endswith(ends)]

    def holds(self, name: str) -> bool:
        """Tell whether a name means any file."""
        return bool(self._matches(name))

    def find(self, name: str, what: str) -> str:
        """Return the path of a LoRA.

        Args:
            name: of its file, with or without the suffix; of sub-folders, too, where that is needed to tell.
            what: what asks for it, for messages.

        Raises:
            ArgumentError: the name, or the file that is a link, leads out of the folder.
            ModelError: no file is called so, or several are.
        """
        shown = self.shown or show_path(self.path)
        parts = re.split(r"[/\\]", name)
        if os.path.isabs(name) or os.path.splitdrive(name)[0] or ".." in parts:
            more = "" if self.shown else ", or pass its path in loras="
            raise ArgumentError(f"{what} leads out of lora_model_dir; name a file in {shown}{more}")
        matches = self._matches(name)
        if len(matches) > 1:
            raise ModelError(f"{what} may be any of {', '.join(matches[:5])}; write folder and suffix, too")
        found = self._files[matches[0]] if matches else self._linked(name)
        if found is None:
            raise ModelError(f"{what}: there is no such LoRA in {shown}{self._near(name)}")
        root = os.path.realpath(self.path)
        if os.path.commonpath([root, os.path.realpath(found)]) != root:
            raise ArgumentError(f"{what} is a link that leads out of lora_model_dir; copy the file to {shown}")
        return found

    def _linked(self, name: str) -> str | None:
        """Return what a name leads to through a folder that is a link, which is not searched."""
        whole = os.path.join(self.path, name)
        try:
            return next(
                (each for each in (whole, *(whole + suffix for suffix in SUFFIXES)) if os.path.isfile(each)), None
            )
        except ValueError:
            return None

    def _near(self, name: str) -> str:
        """Return the names that are like one, as a hint."""
        import difflib

        stems = {os.path.splitext(each)[0].casefold(): os.path.splitext(each)[0] for each in self._files}
        bases = {os.path.basename(each): whole for each, whole in stems.items()}
        known = {**bases, **stems}
        near = difflib.get_close_matches(_composed(name).casefold(), known, 3, 0.5)
        names = list(dict.fromkeys(known[each] for each in near))
        if names:
            return f"; did you mean {', '.join(names)}?"
        return f", which has {len(self._files)}" if self._files else ", which has none"


def _read_tag(inner: str, folder: LoraFolder) -> Lora:
    """Return the LoRA that a tag calls."""
    what = f"prompt: {show(f'<lora:{inner.removeprefix(HIGH_NOISE)}>')}"

    def find(name: str) -> str:
        if not name.strip():
            raise ArgumentError(f"{what} names no LoRA; write <lora:NAME:STRENGTH>")
        return folder.find(name, what)

    return called(inner, folder.holds, find, what)


def take_tags(prompt: str, folder: StrPath | None, shown: str = "") -> tuple[str, list[Lora]]:
    """Return a prompt without its tags, and the LoRAs that they call.

    A tag is ``<lora:NAME:STRENGTH>`` as in A1111's web UI, or without the strength, which is 1 then. Of two numbers the
    first is for the text encoders and the second for the diffusion model; ``te=`` and ``unet=`` before one say which it
    is. ``<lora:|high_noise|NAME:STRENGTH>`` is of the high-noise model. Letters may be capital.

    Args:
        prompt: the prompt.
        folder: where they are; None for none.
        shown: what messages call the folder; empty for its path.

    Raises:
        ArgumentError: there is no folder, a tag leads out of it, or it is not closed, or a hypernetwork's.
        ModelError: a file is missing.
    """
    tags = list(_TAG.finditer(prompt))
    if not tags:
        return prompt, []
    for tag in tags:
        _check_tag(tag, "prompt")
    inners = [tag["inner"] for tag in tags]
    if folder is None:
        raise ArgumentError(
            f"prompt: {show(f'<lora:{inners[0]}>')} needs lora_model_dir=... when loading the model, the folder of its "
            "file; or pass loras="
        )
    place = open_folder(folder, shown)
    return _TAG.sub("", prompt), [_read_tag(inner, place) for inner in inners]


def _check_tag(tag: re.Match[str], what: str) -> None:
    """Raise ArgumentError for a tag that nothing can be made of; *what* is where it stands."""
    shown = f"{what}: {show(tag[0])}"
    if tag["kind"].lower() == "hypernet":
        raise ArgumentError(f"{shown} calls a hypernetwork, which the engine does not know; leave it away")
    if not tag["end"]:
        raise ArgumentError(f"{shown} is a tag that is not closed; write <lora:NAME:STRENGTH>")


def open_folder(path: StrPath, shown: str = "") -> LoraFolder:
    """Return a folder of LoRAs; *shown* is what messages call it, where they may not tell the path.

    Raises:
        ModelError: there is none.
    """
    return LoraFolder(os.fsdecode(check_folder(path, "lora_model_dir")), shown)


def find_loras(loras: Sequence[Lora], folder: StrPath | None) -> tuple[Lora, ...]:
    """Return LoRAs with paths for bare names, which pictures carry; the folder's come before those in the directory.

    Args:
        loras: with paths, or names of files in the folder.
        folder: where those are looked for; None for nowhere.

    Raises:
        ArgumentError: a name leads out of the folder.
        ModelError: a file is missing.
    """
    found = []
    place = functools.cache(lambda: open_folder(folder or ""))  # searched once, if at all
    for lora in loras:
        name = os.fsdecode(lora.path)
        relative = "\0" not in name and not os.path.isabs(name)
        bare = relative and not os.path.exists(name)
        if folder is not None and (bare or (relative and place().holds(name))):
            lora = dataclasses.replace(lora, path=place().find(name, f"LoRA: {show_path(lora.path)}"))
        elif bare and not os.path.dirname(name) and not name.lower().endswith(SUFFIXES):
            raise ModelError(
                f"LoRA: {show_path(lora.path)} does not exist; pass its path, or lora_model_dir= when loading the model"
            )
        found.append(lora)
    return tuple(found)


def with_loras(values: Mapping[str, Any], folder: StrPath | None) -> tuple[dict[str, Any], int]:
    """Return a call's checked values with the LoRAs of its prompt's tags behind the others, and how many those are.

    Args:
        values: of a mode that draws.
        folder: of LoRAs; None for none.

    Raises:
        ArgumentError, ModelError: as of :func:`take_tags` and :func:`find_loras`.
    """
    if "loras" not in values:
        return dict(values), 0
    if inner := _TAG.search(values.get("negative_prompt") or ""):
        _check_tag(inner, "negative_prompt")
        raise ArgumentError(f"negative_prompt: {show(inner[0])} belongs into prompt; a LoRA changes what both give")
    prompt, tagged = take_tags(values["prompt"], folder)
    loras = (*find_loras(values["loras"], folder), *tagged)
    return {**values, "prompt": prompt, "loras": loras}, len(tagged)
