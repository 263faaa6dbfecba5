"""The models that are served, by name: those of ``models.toml``, or the one that the command names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import hub
from ..errors import ArgumentError, ModelError
from ..lora_folder import open_folder
from ..models import EMBEDDED_DEFAULTS
from ..modes import DRAWING, FILMING, IMG2IMG, INPAINT, LOADING, TXT2IMG, UPSCALE, UPSCALER, Mode
from ..options.checks import show
from ..options.json_values import built, holds_pictures
from ..options.kinds import Embeddings, File, Folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EMBEDDED = "embedded"
"""The name of the model inside the package."""
LORA_FOLDER = "the model's folder of LoRAs"
"""What clients are told instead of a path of this machine."""
MODES: Mapping[str, Mode] = {mode.name: mode for mode in (*DRAWING, *FILMING, UPSCALE)}
"""The modes that are served, by name."""
_DEFAULTS = "defaults"
PICTURE_FORMATS = ("png", "jpeg", "webp", "avif")
VIDEO_FORMATS = ("webp", "gif", "png", "mp4", "webm")


def formats_of(mode: str) -> tuple[str, ...]:
    """Return the formats that a mode's files may have, its own default first."""
    return VIDEO_FORMATS if mode in {each.name for each in FILMING} else PICTURE_FORMATS


@dataclass(frozen=True)
class ServedModel:
    """A model that may be loaded.

    Attributes:
        name: what requests call it.
        kind: ``model`` or ``upscaler``.
        loading: options of loading it.
        defaults: options of drawing that are taken where a request gives none.
    """

    name: str
    kind: str = "model"
    loading: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """Its files and folders of files, by option."""
        mode = LOADING if self.kind == "model" else UPSCALER
        return {k: v for k, v in self.loading.items() if v and isinstance(mode.declared[k].kind, (File, Folder))}

    @property
    def paths(self) -> list[str]:
        """All that it names on this machine."""
        named = [*self.files.values(), *(self.loading.get("embeddings") or {}).values()]
        return [os.fsdecode(each) for each in named if not hub.is_name(each)]

    def file_bytes(self) -> int:
        """Return the size of its files, roughly what its weights take; 0 where that cannot be told."""
        return sum(os.path.getsize(each) for each in self.files.values() if os.path.isfile(each))

    @property
    def drawn_with(self) -> dict[str, Any]:
        """What it is drawn with where a request says nothing, as far as that is not the engine's own default."""
        own = {} if self.file or self.kind == "upscaler" else EMBEDDED_DEFAULTS
        return {**own, **self.defaults}

    @property
    def modes(self) -> tuple[str, ...] | None:
        """The modes that it has, as far as that is known before it is loaded."""
        if self.kind == "upscaler":
            return (UPSCALE.name,)
        return None if self.file else (TXT2IMG.name, IMG2IMG.name, INPAINT.name)

    @property
    def file(self) -> str:
        """The file that it is called after; empty for the embedded one."""
        return str(self.loading.get("model") or self.loading.get("diffusion_model") or "")

    @property
    def lora_folder(self) -> str | None:
        """Where its LoRAs are; None for nowhere."""
        return self.loading.get("lora_model_dir")

    def lora_names(self) -> list[str]:
        """Return the names of the LoRAs there, read from the folder now."""
        return [] if self.lora_folder is None else open_folder(self.lora_folder).names


def _resolved(table: Mapping[str, Any], mode: Mode, folder: Path, where: str) -> dict[str, Any]:
    """Return options of loading with paths from the folder of the file that names them."""
    made = {}
    for name, value in table.items():
        if name not in mode.declared or not mode.declared[name].kind.in_json:
            raise ArgumentError(f"{where}: {name} is no option of loading; see docs/options.md")
        kind = mode.declared[name].kind
        if isinstance(kind, (File, Folder)):
            own = isinstance(value, str) and not hub.is_name(value)
            value = str(folder / os.path.expanduser(value)) if own else value
        elif isinstance(kind, Embeddings) and isinstance(value, Mapping):
            value = {key: str(folder / os.path.expanduser(str(path))) for key, path in value.items()}
        made[name] = value
    try:
        mode.check(made)
    except (ArgumentError, TypeError) as error:
        raise ArgumentError(f"{where}: {error}") from None
    return made


def _tables(content: Mapping[str, Any], key: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the named tables of a table."""
    tables = content.get(key, {})
    if not isinstance(tables, Mapping):
        raise ArgumentError(f"{where}: {key} must be tables, written as [{key}.NAME]")
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ArgumentError(f"{where}: {key}.{name} must be a table")
        if not name.strip() or "/" in name or not name.isprintable():
            raise ArgumentError(f"{where}: {key}.{show(name)} is no name that addresses can have; take another one")
        yield name, dict(table)


def _drawn(defaults: Any, where: str) -> dict[str, Any]:
    """Return a model's defaults of drawing, checked as far as that needs no model."""
    if not isinstance(defaults, Mapping):
        raise ArgumentError(f"{where}: {_DEFAULTS} must be a table")
    for name, value in defaults.items():
        modes = [mode for mode in (*DRAWING, *FILMING) if name in mode.declared]
        if not modes or holds_pictures(modes[0].declared[name]):
            raise ArgumentError(f"{where}: {_DEFAULTS}.{name} is no option of drawing")
        try:
            declared = modes[0].declared
            declared[name].check(built(declared, {name: value})[name], f"{_DEFAULTS}.{name}")
        except (ArgumentError, TypeError) as error:
            raise ArgumentError(f"{where}: {error}") from None
    return dict(defaults)


def read_models(file: str | os.PathLike[str]) -> dict[str, ServedModel]:
    """Return the models of a ``models.toml``, the default one first.

    Raises:
        ModelError: the file cannot be read.
        ArgumentError: what it says is no TOML, or no model.
    """
    path = Path(file)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"models file {path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise ArgumentError(f"models file {path}: {error}") from None
    if unknown := content.keys() - {"models", "upscalers"}:
        raise ArgumentError(f"models file {path}: {sorted(unknown)[0]} is neither models nor upscalers")
    found: dict[str, ServedModel] = {}
    for name, table in _tables(content, "models", str(path)):
        where = f"models file {path}: {name}"
        defaults = _drawn(table.pop(_DEFAULTS, {}), where)
        found[name] = ServedModel(name, "model", _resolved(table, LOADING, path.parent, where), defaults)
    for name, table in _tables(content, "upscalers", str(path)):
        where = f"models file {path}: upscaler {name}"
        if name in found:
            raise ArgumentError(f"{where}: a model has this name, too")
        found[name] = ServedModel(name, "upscaler", _resolved(table, UPSCALER, path.parent, where))
    if not any(each.kind == "model" for each in found.values()):
        raise ArgumentError(f"models file {path}: names no model; write [models.NAME] and model = FILE below it")
    return found


def one_model(loading: Mapping[str, Any]) -> dict[str, ServedModel]:
    """Return the model that options of loading are of, called by its file, or the embedded one.

    Raises:
        ArgumentError: an option is unknown or out of range.
    """
    LOADING.check(loading)
    plain = {name: os.fsdecode(each) if isinstance(each, os.PathLike) else each for name, each in loading.items()}
    model = ServedModel("", "model", plain)
    name = Path(model.file).stem if model.file else EMBEDDED
    return {name: ServedModel(name, "model", plain)}


def folder_upscalers(folder: str | os.PathLike[str]) -> dict[str, ServedModel]:
    """Return the upscalers of a folder by their files' names.

    Raises:
        ModelError: there is no such folder.
    """
    from ..model_files import SUFFIXES

    if not os.path.isdir(folder):
        raise ModelError(f"upscaler_dir {os.fspath(folder)} is no folder; make it, or name another one")
    files = [each for each in sorted(Path(folder).iterdir()) if each.suffix.lower() in SUFFIXES and each.is_file()]
    return {each.stem: ServedModel(each.stem, "upscaler", {"model": str(each)}) for each in files}


def served_models(values: Mapping[str, Any], loading: Mapping[str, Any], here: bool = True) -> dict[str, ServedModel]:
    """Return the models that the command names.

    Args:
        values: of the options of :class:`sdcpp_py.options.serving.Served`.
        loading: options of loading the one model, where no models file is given.
        here: whether this machine loads them, so that their files must be here.

    Raises:
        ArgumentError: one is named by flags and others by a file, or an option is none.
        ModelError: a file or folder is missing.
    """
    if values["models_file"] is not None:
        if loading:
            raise ArgumentError(f"{next(iter(loading))} and --models are given; write it into the file of --models")
        found = read_models(values["models_file"])
    else:
        found = one_model(loading)
    if values["upscaler_dir"] is not None:
        found = {**folder_upscalers(values["upscaler_dir"]), **found}
    for model in found.values() if here else ():
        for option, file in model.files.items():
            if hub.is_name(file):
                hub.fetch(hub.parse(file))  # now, not while a client waits
            elif not os.path.exists(file):
                raise ModelError(f"{model.name}: {option} {file} does not exist; name another file")
    return found


def named_file(models: Mapping[str, ServedModel], served: ServedModel, name: str, value: Any) -> str:
    """Return the path of a file that a request calls by its name; nothing outside the declared folders is one.

    Args:
        models: those that are served.
        served: the one that draws.
        name: what messages call the option.
        value: the name of the file.

    Raises:
        ArgumentError: requests name no such files here, or the name leads out of its folder.
        ModelError: there is no such file.
    """
    if not isinstance(value, str):
        raise ArgumentError(f"{name} must be the name of a file, not {show(value)}")
    if name.startswith("loras["):
        if served.lora_folder is None:
            raise ArgumentError(f"{name}: this model has no folder of LoRAs; start with --lora-model-dir")
        return open_folder(served.lora_folder, LORA_FOLDER).find(value, name)
    if name == "hires.model":
        found = models.get(value)
        if found is None or found.kind != "upscaler":
            known = [each.name for each in models.values() if each.kind == "upscaler"]
            raise ArgumentError(f"{name} {show(value)} is no upscaler here; there are: {', '.join(known) or 'none'}")
        return found.file
    raise ArgumentError(f"{name}: requests name no files; give it to the model in models.toml")
