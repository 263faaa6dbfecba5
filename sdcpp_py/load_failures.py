"""Why a model could not be loaded, as one line that names argument and file."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

from .engine.files import file_list
from .errors import GenerationError, ModelError
from .file_kinds import FileKind, file_kind
from .model_files import StrPath, show_path

# Beginning of a tensor's name -> the part that it is of, and the arguments that may have brought it, the nearest first.
_OWNERS = {
    "first_stage_model.": ("vae", ("vae", "model")),
    "vae.": ("vae", ("vae", "model")),
    "tae.": ("tae", ("taesd",)),
    "model.high_noise_diffusion_model.": ("diffusion", ("high_noise_diffusion_model", "model")),
    "model.diffusion_model.": ("diffusion", ("diffusion_model", "model")),
    "cond_stage_model.transformer.vision_model.": ("clip_vision", ("clip_vision", "model")),
    "cond_stage_model.1.": ("clip", ("clip_g", "model")),
    "cond_stage_model.": ("clip", ("clip_l", "model")),
    "text_encoders.clip_g.": ("clip", ("clip_g", "model")),
    "text_encoders.clip_l.": ("clip", ("clip_l", "model")),
    "text_encoders.t5xxl.": ("t5", ("t5xxl", "model")),
    "text_encoders.llm.visual.": ("llm_vision", ("llm_vision", "llm", "model")),
    "text_encoders.llm.": ("llm", ("llm", "model")),
    "pmid.": ("photo_maker", ("photo_maker",)),
    "": ("control_net", ("control_net",)),  # whose names have no prefix
}
_MISSING = {
    "vae": "VAE; pass vae= too",
    "clip": "CLIP text encoder; pass clip_l= or clip_g= too",
    "t5": "T5 text encoder; pass t5xxl= too",
    "llm": "language model as text encoder; pass llm= too",
    "clip_vision": "CLIP vision encoder; pass clip_vision= too",
    "diffusion": "diffusion model; pass diffusion_model= too",
}
_TENSOR = re.compile(r"tensor '(?P<name>[^']*)'(?P<rest>.*)")


@contextlib.contextmanager
def explained(files: Mapping[str, StrPath | None]) -> Iterator[None]:
    """Name the argument and the file in what loading them raises.

    Args:
        files: argument -> path of the model's files.
    """
    try:
        yield
    except ModelError as error:
        given = {name: path for name, path in files.items() if path is not None}
        message = _message(error, given)
        if message is None:
            raise
        raise type(error)(message, error.engine_log) from None


@contextlib.contextmanager
def explained_upscaler(path: StrPath | None) -> Iterator[None]:
    """Name the argument and the file where the upscaler's model of a second pass does not fit.

    Args:
        path: of the file; None for none.
    """
    try:
        yield
    except GenerationError as error:
        if path is None or not _TENSOR.match(str(error)):
            raise
        raise ModelError(f"hires.model: {show_path(path)} does not fit: {error}", error.engine_log) from None


def _message(error: ModelError, files: Mapping[str, StrPath]) -> str | None:
    """Return the better message, None where there is none."""
    said = str(error)
    if found := _TENSOR.match(said):
        return _of_tensor(found["name"], said, files)
    if any("get sd version from file failed" in line for line in error.engine_log):
        return _of_family(files)
    for name, path in files.items():
        if said.startswith(f"{show_path(path)} "):
            return f"{name}: {said}"
    if any(show_path(path) in said for path in files.values()) or not files:
        return None
    whose = next(name for name in ("diffusion_model", "model", *files) if name in files)
    return f"{whose}: {show_path(files[whose])}: {said}"


def _kinds(files: Mapping[str, StrPath]) -> dict[str, FileKind]:
    """Return what the files hold, those that can be read."""
    kinds = {}
    for name, path in files.items():
        with contextlib.suppress(ModelError):
            kinds[name] = file_kind(path)
    return kinds


def _of_tensor(name: str, said: str, files: Mapping[str, StrPath]) -> str:
    """Return what is wrong with a tensor, and whose it is."""
    part, arguments = next(owner for beginning, owner in _OWNERS.items() if name.startswith(beginning))
    whose = next((each for each in (*arguments, "diffusion_model", *files) if each in files), None)
    if whose is None:
        return said
    shown = f"{whose}: {show_path(files[whose])}"
    if "of no use to this model" in said:
        return f"{shown} has no effect, for this model takes nothing of it; leave it out"
    if "missing" in said and (why := _left_out(name, files[whose])):
        return f"{shown} does not fit: tensor '{name}' is {why}, and no numbers that weights could be"
    if "missing" in said:
        there = frozenset().union(*(kind.parts for kind in _kinds(files).values()))
        if "every other text encoder" in said:
            return f"{shown} comes without a text encoder; pass clip_l=, clip_g=, t5xxl= or what its family takes"
        if part not in there and part in _MISSING:
            return f"{shown} comes without a {_MISSING[part]}"
    return f"{shown} does not fit: {said}"


def _left_out(name: str, path: StrPath) -> str | None:
    """Return why a tensor of a file was left out, such as its type; None for one that is not there."""
    for each in file_list(os.fsencode(path)).left_out:
        tensor, _, why = each.rpartition(" (")
        if f".{name}".endswith(f".{tensor.strip(chr(39))}"):
            return why.removesuffix(")")
    return None


def _of_family(files: Mapping[str, StrPath]) -> str | None:
    """Return why the engine cannot tell what model the files are."""
    whose = next((name for name in ("diffusion_model", "model") if name in files), None)
    if whose is None:
        return None
    shown, kinds = f"{whose}: {show_path(files[whose])}", _kinds(files)
    there = frozenset().union(*(kind.parts for kind in kinds.values()))
    family = kinds[whose].family if whose in kinds else None
    if whose == "diffusion_model" and whose in kinds and kinds[whose].whole:
        return f"{shown} holds a whole checkpoint, not a diffusion model alone; pass it as model="
    if family in ("SD 1.x", "SD 2.x", "SDXL", "Stable Diffusion"):
        if "clip" not in there:
            return f"{shown} comes without a {_MISSING['clip']}"
        return f"{shown} holds the UNet of {family} alone, which the engine takes in a whole checkpoint only"
    return f"{shown} holds a diffusion model of no family that the engine knows, or lacks a part of it"
