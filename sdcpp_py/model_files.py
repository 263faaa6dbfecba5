"""Checks of model files before the engine loads them, so that a bad or wrong file is named by what is wrong with it."""

from __future__ import annotations

import logging
import os
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

from .engine.files import Listing, file_list
from .engine.text_forms import clip_form
from .errors import ArgumentError, ModelError
from .file_kinds import FileKind, kind_of

log = logging.getLogger("sdcpp_py")

StrPath = Union[str, "os.PathLike[str]", bytes]

SUFFIXES = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
"""Of files that hold weights."""

# First bytes of files that people pass by mistake.
_NOT_MODELS = {
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a WebP picture or sound",
    b"%PDF": "a PDF document",
    b"<!DO": "an HTML page, perhaps of a failed download",
    b"<htm": "an HTML page, perhaps of a failed download",
    b"vers": "a Git LFS pointer; fetch the file itself with git lfs pull",
    b"\x1f\x8b": "a gzip archive",
}

# What a file may hold -> what that is called, and where it goes.
_PARTS = {
    "diffusion": ("a diffusion model alone", "pass diffusion_model="),
    "clip": ("a CLIP text encoder", "pass clip_l= or clip_g="),
    "clip_vision": ("a CLIP vision encoder", "pass clip_vision="),
    "t5": ("a T5 text encoder", "pass t5xxl="),
    "llm": ("a language model", "pass llm="),
    "llm_vision": ("the vision part of a language model", "pass llm_vision="),
    "vae": ("a VAE", "pass vae="),
    "tae": ("a small autoencoder", "pass taesd="),
    "control_net": ("a ControlNet", "pass control_net="),
    "photo_maker": ("PhotoMaker", "pass photo_maker="),
    "lora": ("a LoRA", "pass it in loras="),
    "embedding": ("a textual inversion", "pass it in embeddings="),
    "upscaler": ("an upscaler", "pass it where an upscaler is asked for"),
}
PART_NOUNS = {part: noun for part, (noun, _) in _PARTS.items()}
"""What a file may hold -> what that is called."""
PART_USES = {part: use for part, (_, use) in _PARTS.items()}
"""What a file may hold -> where it goes."""


@dataclass(frozen=True)
class Role:
    """What a file is passed as.

    Attributes:
        takes: the parts of which it needs one.
        bare: whether their names must be without the prefix that they have in a checkpoint.
        noun: what that is called, where the parts' names do not say it.
    """

    takes: frozenset[str]
    bare: bool = True
    noun: str = ""


def _role(*takes: str, bare: bool = True, noun: str = "") -> Role:
    return Role(frozenset(takes), bare, noun)


ROLES = {
    "model": _role("diffusion", bare=False, noun="a checkpoint with a diffusion model"),
    "diffusion_model": _role("diffusion", bare=False, noun="a diffusion model"),
    "high_noise_diffusion_model": _role("diffusion", bare=False, noun="a diffusion model"),
    "clip_l": _role("clip"),
    "clip_g": _role("clip"),
    "clip_vision": _role("clip_vision"),
    "t5xxl": _role("t5"),
    "llm": _role("llm"),
    "llm_vision": _role("llm_vision", "llm"),
    "vae": _role("vae"),
    "taesd": _role("tae"),
    "control_net": _role("control_net"),
    "photo_maker": _role("photo_maker", bare=False),
    "LoRA": _role("lora", bare=False),
    "embedding": _role("embedding"),
    "hires.model": _role("upscaler"),
    "upscaler": _role("upscaler"),
}
"""Argument -> what its file must hold."""

_NO_MODELS = ("id_embed",)  # arguments whose files have a format of their own
_CLIP_WIDTHS = {"clip_l": 768, "clip_g": 1280}


def show_path(path: StrPath) -> str:
    """Return a path for a message, with undecodable bytes escaped."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode("utf-8")


def encode_path(path: StrPath, what: str) -> bytes:
    """Return a path as the bytes that the engine opens; *what* names the argument in messages."""
    try:
        encoded = os.fsencode(path)
    except (TypeError, UnicodeEncodeError):
        raise ModelError(f"{what}: {path!a} is not a path") from None
    if b"\0" in encoded:
        raise ModelError(f"{what}: the path {path!a} holds a NUL byte")
    return encoded


def check_file(path: StrPath, what: str) -> bytes:
    """Return the path of a file or folder as bytes after a look at it.

    Args:
        path: the file.
        what: name of the argument, for messages.

    Raises:
        ModelError: missing, empty, unreadable, or plainly not a model.
    """
    encoded = encode_path(path, what)
    shown = show_path(path)
    try:
        status = os.stat(encoded)
        if stat.S_ISDIR(status.st_mode):
            return encoded
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{what}: {shown} is not a regular file")
        if status.st_size == 0:
            raise ModelError(f"{what}: {shown} is empty; fetch it again")
        with open(encoded, "rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise ModelError(f"{what}: {shown} does not exist; check the path") from None
    except PermissionError as error:
        raise ModelError(f"{what}: {shown} cannot be read ({error.strerror}); check its rights") from None
    except OSError as error:
        if error.errno is None:  # not the system's: a signal handler's TimeoutError, say
            raise
        raise ModelError(f"{what}: {shown} cannot be read ({error.strerror}); check the path") from None
    kind = next((kind for magic, kind in _NOT_MODELS.items() if start.startswith(magic)), None)
    if kind is not None:
        raise ModelError(f"{what}: {shown} is {kind}, not a model")
    return encoded


def check_folder(path: StrPath, what: str) -> bytes:
    """Return the path of a folder as bytes; *what* names the argument in messages.

    Raises:
        ModelError: there is no such folder.
    """
    encoded = encode_path(path, what)
    if not os.path.isdir(encoded):
        why = "is a file" if os.path.exists(encoded) else "does not exist"
        raise ModelError(f"{what}: {show_path(path)} {why}; pass a folder")
    return encoded


def files_by_name(path: StrPath, what: str) -> dict[str, str]:
    """Return the files of weights in a folder and its sub-folders: name without suffix -> path.

    Raises:
        ModelError: there is no such folder, or two files have one name.
    """
    found: dict[str, str] = {}
    for folder, _, files in os.walk(os.fsdecode(check_folder(path, what))):
        for file in sorted(files):
            name, suffix = os.path.splitext(file)
            if suffix.lower() not in SUFFIXES:
                continue
            whole = os.path.join(folder, file)
            if name in found:
                raise ModelError(f"{what}: {show_path(found[name])} and {show_path(whole)} have one name; rename one")
            found[name] = whole
    return found


def list_file(path: StrPath, what: str) -> Listing:
    """Return what a file, an index of shards or a folder lists.

    Args:
        path: the file.
        what: name of the argument, for messages.

    Raises:
        ModelError: it is missing, damaged or not a model.
    """
    listing = file_list(check_file(path, what))
    if listing.error is not None:
        hint = "; fetch it again" if "cut off" in listing.error or "damaged" in listing.error else ""
        raise ModelError(f"{what}: {show_path(path)} {listing.error}{hint}")
    return listing


def check_model_file(path: StrPath, what: str) -> bytes:
    """Return the path as bytes once the file is known to hold what the argument needs.

    Args:
        path: a file, an index of shards (``*.safetensors.index.json``), or a folder in diffusers' layout or with one
            model in it.
        what: name of the argument, with more words behind it for one of several: ``vae``, ``embedding cat``.

    Raises:
        ModelError: missing, unreadable, cut off, damaged, no model, or a model of another kind.
    """
    if what in _NO_MODELS:
        return check_file(path, what)
    kind = kind_of(list_file(path, what))
    role = ROLES.get(what) or ROLES.get(what.split(" ")[0])
    if role is not None:
        _check_kind(kind, role, what, show_path(path))
    return encode_path(path, what)


def _check_kind(kind: FileKind, role: Role, what: str, shown: str) -> None:
    """Raise ModelError unless a file holds what a role takes."""
    # A part of a checkpoint or of a pipeline does not come alone.
    there = kind.parts if not role.bare else frozenset() if kind.whole else kind.bare
    wanted = role.noun or " or ".join(_PARTS[part][0] for part in sorted(role.takes))
    if what == "model" and "diffusion" in kind.bare and not kind.whole:
        # The engine knows it by the prefix that it has in a checkpoint.
        raise ModelError(f"{what}: {shown} holds {_held(kind)}; {_PARTS['diffusion'][1]}")
    if not role.takes & there:
        raise ModelError(f"{what}: {shown} holds {_held(kind)}, not {wanted}{_hint(kind, role, what)}")
    if "diffusion" in role.takes and kind.family is None:
        raise ModelError(
            f"{what}: {shown} holds a diffusion model of a family that the engine does not know; "
            "of those it knows it reads Flux and SD3 under their makers' names alone, not under diffusers'"
        )
    if what in _CLIP_WIDTHS and kind.token_widths[:1] not in ((), (_CLIP_WIDTHS[what],)):
        other = next((role for role, width in _CLIP_WIDTHS.items() if width == kind.token_widths[0]), None)
        if other is not None:
            raise ModelError(f"{what}: {shown} holds the text encoder that {other}= takes; pass it there")


def _held(kind: FileKind) -> str:
    """Say what a file holds."""
    if not kind.names:
        return "no tensors" + (f" that the engine can use (only {kind.left_out[0]})" if kind.left_out else "")
    if kind.whole:
        family = f" of {kind.family}" if kind.family else ""
        return f"a whole checkpoint{family}"
    if not kind.parts:
        names = ", ".join(f"'{name[:60]}'" for name in kind.names)
        return f"nothing that the engine knows (tensors such as {names})"
    return " and ".join(_PARTS[part][0] for part in _PARTS if part in kind.parts)


def _hint(kind: FileKind, role: Role, what: str) -> str:
    """Say where a file would go, unless the call takes none but *what*."""
    if what == "upscaler":
        return ""
    if kind.whole:
        return "; pass it as model=" if role.takes != ROLES["model"].takes else ""
    part = next((part for part in _PARTS if part in kind.parts), None)
    if part is None:
        return ""
    if part in role.takes:
        return "; its tensors have the prefix of a checkpoint, so pass it as model="
    return f"; {_PARTS[part][1]}"


def check_embeddings(
    embeddings: Mapping[str, StrPath],
    encoders: Mapping[str, bytes | None],
    folder: Mapping[str, StrPath] | None = None,
) -> dict[str, bytes]:
    """Return the paths of textual inversions once they are known to fit the model's text encoders.

    Args:
        embeddings: name in prompts -> file.
        encoders: argument -> path of each file that may hold the model's text encoders, the checkpoint first.
        folder: the same as *embeddings* of a folder, of which those that do not fit are left out, with a warning.

    Raises:
        ArgumentError: a name is empty, or of spaces alone.
        ModelError: a file holds something else, or vectors for another model.
    """
    if not embeddings and not folder:
        return {}
    kinds = {what: kind_of(file_list(path)) for what, path in encoders.items() if path is not None}
    family = next((kind.family for kind in kinds.values() if kind.family), None)
    unet = family in ("SD 1.x", "SD 2.x", "SDXL", "Stable Diffusion")
    widths = [width for kind in kinds.values() for width in kind.token_widths]

    def check(name: str, path: StrPath) -> bytes:
        if not name.strip():
            raise ArgumentError("embeddings: the name of a textual inversion must hold more than spaces")
        what = f"embedding {name}"
        encoded = check_model_file(path, what)
        found = dict(kind_of(file_list(encoded)).vector_widths)
        if family is not None and not unet:
            raise ModelError(f"{what}: {family} takes no textual inversions; only models with a UNet do")
        if not widths:
            return encoded  # the engine says it when it has loaded the text encoders
        pair = set(found) == {"clip_l", "clip_g"}
        taken = [found["clip_l"], found["clip_g"]] if pair else list(found.values())
        if taken != widths[:2]:
            has, takes = (" and ".join(map(str, each)) for each in (taken, widths[:2]))
            raise ModelError(
                f"{what}: {show_path(path)} holds vectors of {has} numbers, but the model's text encoders take {takes}"
            )
        return encoded

    checked = {name: check(name, path) for name, path in embeddings.items()}
    left_out = []
    for name, path in (folder or {}).items():
        try:
            checked.setdefault(name, check(name, path))
        except ModelError as error:
            left_out.append(str(error))
    if left_out and folder:
        log.warning(
            "embd_dir: %d of %d files do not fit and are left out (%s)", len(left_out), len(folder), left_out[0]
        )
    # Names are looked for in the form that the tokenizer gives the prompt.
    return {clip_form(unicodedata.normalize("NFC", name)): path for name, path in checked.items()}
