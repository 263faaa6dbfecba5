"""Model files by their names on a hub: repositories of Hugging Face, fetched into its cache or found there.

A name is ``owner/repo``, ``owner/repo:FILE`` or ``owner/repo@REVISION:FILE``; where paths may stand, too, it is
``hf://owner/repo@REVISION/FILE``, as huggingface_hub writes it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ArgumentError, BackendError, HubError, SdcppError
from .model_files import SUFFIXES
from .options.checks import show
from .options.declare import Option
from .options.kinds import File

log = logging.getLogger("sdcpp_py")

SCHEME = "hf://"
"""What a name begins with where a path may stand as well."""
_REPO = r"(?P<repo>[\w-][\w.-]*/[\w.-]+)"
_NAME = re.compile(rf"{_REPO}(@(?P<revision>[^:@]+))?(:(?P<file>.+))?")
_ADDRESS = re.compile(rf"{SCHEME}{_REPO}(@(?P<revision>[^/@]+))?(/(?P<file>.+?))?/?")
_PIPELINE = "model_index.json"
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that no model here has
_USUAL = ("diffusion_pytorch_model", "model", "pytorch_model")
_SHARD = re.compile(r"-\d+-of-\d+(?=\.)")
_INDEX = ".index.json"
_NAMED = 6  # files that a message names


@dataclass(frozen=True)
class HubName:
    """What is fetched.

    Attributes:
        repo: ``owner/repo``.
        file: a file or a folder in it; empty for the one model that it holds.
        revision: branch, tag or commit; None for the main branch.
    """

    repo: str
    file: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        """Return the name as it is written."""
        return f"{self.repo}{f'@{self.revision}' if self.revision else ''}{f':{self.file}' if self.file else ''}"

    @property
    def address(self) -> str:
        """The name where a path may stand."""
        revision = f"@{urllib.parse.quote(self.revision, safe='')}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}{f'/{self.file}' if self.file else ''}"


def parse(text: str) -> HubName:
    """Return what a name means.

    Raises:
        ArgumentError: it is none.
    """
    match = _ADDRESS.fullmatch(text) if text.startswith(SCHEME) else _NAME.fullmatch(text)
    if match is None or ".." in (match["file"] or "").split("/"):
        forms = "owner/repo, owner/repo:FILE or hf://owner/repo/FILE"
        raise ArgumentError(f"{show(text)} is no name on the hub; write {forms}")
    revision = match["revision"] and urllib.parse.unquote(match["revision"])
    return HubName(match["repo"], (match["file"] or "").strip("/"), revision)


def is_name(value: Any) -> bool:
    """Tell whether what may be a path is a name on the hub."""
    return isinstance(value, str) and value.startswith(SCHEME)


def fetch(name: HubName, *, offline: bool = False, shown: bool | None = None) -> str:
    """Return the path of a model's file or folder in the hub's cache, after what is missing there was fetched.

    Args:
        name: of the model.
        offline: whether only the cache is looked at; the variable HF_HUB_OFFLINE says so, too.
        shown: True for bars of progress, False for none, None for some where a person sees them.

    Raises:
        HubError: there is no such repository, revision or file, it is gated, the hub cannot be reached, or the disk
            is full.
        ArgumentError: the repository holds several models, or none; the message names them.
        BackendError: huggingface_hub is missing.
    """
    try:
        import huggingface_hub
        from huggingface_hub.constants import HF_HUB_OFFLINE
    except ImportError:
        raise BackendError('names on a hub need huggingface_hub: pip install "sdcpp-py[hub]"') from None
    offline = offline or bool(HF_HUB_OFFLINE)
    with _told(name, offline):
        if offline:
            return _cached(name)
        try:
            told = huggingface_hub.HfApi().model_info(name.repo, revision=name.revision)
        except Exception as error:  # of whatever library it asks the hub with
            if getattr(error, "response", None) is not None:
                raise
            with contextlib.suppress(Exception):  # it says less than the first error
                found = _cached(name)
                log.warning("the hub cannot be reached; %s is taken from its cache, as it was there last", name)
                return found
            raise
        path, files = chosen(name, [each.rfilename for each in told.siblings or ()])
        with _bars(shown):
            there = [huggingface_hub.hf_hub_download(name.repo, each, revision=told.sha) for each in files]
        if name.revision is None or name.revision != told.sha:
            _note(name, told.sha, there[0], files[0])
        folder = there[0].removesuffix(files[0].replace("/", os.sep))
        return os.path.join(folder, path) if path else folder.rstrip(os.sep)


def _cached(name: HubName) -> str:
    """Return the path of a model in the cache; raise what the hub's library does where it is not there."""
    import huggingface_hub

    folder = huggingface_hub.snapshot_download(name.repo, revision=name.revision, local_files_only=True)
    path = chosen(name, _files(folder))[0]
    return os.path.join(folder, *path.split("/")) if path else folder


def _note(name: HubName, commit: str | None, found: str, file: str) -> None:
    """Note in the cache which commit a branch or tag is at, as the hub's own library does, to find it offline."""
    folder = found.removesuffix(os.path.join("snapshots", str(commit), *file.split("/")))
    if folder == found or not commit:
        return
    refs = os.path.join(folder, "refs", *(name.revision or "main").split("/"))
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(refs), exist_ok=True)
        with open(refs, "w", encoding="utf-8") as written:
            written.write(commit)


def _files(folder: str) -> list[str]:
    """Return the files of a folder, as the hub names them."""
    return [
        os.path.relpath(os.path.join(above, each), folder).replace(os.sep, "/")
        for above, _, files in os.walk(folder)
        for each in sorted(files)
    ]


@contextlib.contextmanager
def _bars(shown: bool | None) -> Iterator[None]:
    """Have the hub's library show bars only where they are wanted."""
    from huggingface_hub import utils

    seen = sys.stderr is not None and sys.stderr.isatty() if shown is None else shown
    if seen or utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]


@contextlib.contextmanager
def _told(name: HubName, offline: bool) -> Iterator[None]:
    """Make errors of a line of what the hub's library raises; none has more of a request than the name."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        said = f"{name.repo} is gated: ask for access on its page, and log in with hf auth login, or set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        said = f"{name.repo} is not on the hub, or private: check the name, or log in with hf auth login"
    except errors.RevisionNotFoundError:
        said = f"{name.repo} has no revision {show(name.revision)}; check the branch, tag or commit"
    except SdcppError:
        raise
    except Exception as error:  # of whatever library it asks the hub with
        said = _reason(name, error, offline)
    else:
        return
    raise HubError(f"hub: {said}") from None


def _reason(name: HubName, error: Exception, offline: bool) -> str:
    """Return what a failure says that has no class of its own."""
    from huggingface_hub.constants import HF_HUB_CACHE

    status = getattr(getattr(error, "response", None), "status_code", None)
    number = getattr(error, "errno", None)
    if status is not None:
        return f"{name} cannot be fetched (the hub answers {status}); try again later"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {HF_HUB_CACHE} is full; make room, or name another folder with HF_HUB_CACHE"
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{HF_HUB_CACHE} cannot be written ({os.strerror(number)}); name another folder with HF_HUB_CACHE"
    if offline:
        return f"{name} is not in {HF_HUB_CACHE}, and nothing is fetched offline; run sdcpp pull {name} with a network"
    kind = type(error).__name__
    return f"{name} cannot be fetched ({kind}); check the network, or set HF_HUB_OFFLINE=1 for what is in the cache"


# --- which files ------------------------------------------------------------------------------------------------------


def chosen(name: HubName, files: Sequence[str]) -> tuple[str, list[str]]:
    """Return the path in a repository that is loaded, empty for all of it, and the files that it needs.

    Args:
        name: of the model.
        files: of the repository.

    Raises:
        HubError: there is no such file.
        ArgumentError: there are several models, or none.
    """
    if name.file in files:
        return name.file, [name.file, *_shards(name.file, files)]
    prefix = f"{name.file}/" if name.file else ""
    inside = [each for each in files if each.startswith(prefix)]
    if name.file and not inside:
        import difflib

        near = difflib.get_close_matches(name.file, files, 3) or [each for each in files if _is_model(each)][:_NAMED]
        hint = f"; it has {', '.join(near)}" if near else ""
        raise HubError(f"hub: {name.repo} has no file {show(name.file)}{hint}")
    if f"{prefix}{_PIPELINE}" in inside:
        return name.file, _pipeline(prefix, inside)
    models = [each for each in inside if _is_model(each)]
    for there in ([each for each in models if "/" not in each.removeprefix(prefix)], models):
        alone = _without_doubles(there)
        if len(alone) == 1:
            return alone[0], [alone[0], *_shards(alone[0], files)]
        if alone:
            shown = ", ".join(alone[:_NAMED]) + (", ..." if len(alone) > _NAMED else "")
            said = f"hub: {name.repo} holds {len(alone)} models; write {name.repo}:FILE with one of {shown}"
            raise ArgumentError(said)
    raise ArgumentError(f"hub: {name} holds no model file ({', '.join(SUFFIXES)})")


def _is_model(file: str) -> bool:
    """Tell whether a file is a model: one of weights that is no shard, or an index of shards."""
    if file.endswith(_INDEX):
        return file.removesuffix(_INDEX).endswith(SUFFIXES)
    return file.lower().endswith(SUFFIXES) and not _SHARD.search(file)


def _shards(index: str, files: Sequence[str]) -> list[str]:
    """Return the shards of an index, by their names; none for what is no index."""
    if not index.endswith(_INDEX):
        return []
    stem, suffix = os.path.splitext(index.removesuffix(_INDEX))
    return [each for each in files if _SHARD.search(each) and _SHARD.sub("", each) == f"{stem}{suffix}"]


def _without_doubles(models: Sequence[str]) -> list[str]:
    """Return models without those that are there as safetensors, too."""
    stems = {os.path.splitext(each.removesuffix(_INDEX))[0] for each in models if ".safetensors" in each}
    return [each for each in models if ".safetensors" in each or os.path.splitext(each)[0] not in stems]


def _pipeline(prefix: str, files: Sequence[str]) -> list[str]:
    """Return the files of a folder in diffusers' layout that its model needs: of each part the usual weights."""
    found = [f"{prefix}{_PIPELINE}"]
    parts: dict[str, list[str]] = {}
    for file in files:
        part, slash, rest = file.removeprefix(prefix).partition("/")
        if slash and "/" not in rest and part not in _UNUSED:
            parts.setdefault(part, []).append(rest)
    for part, names in parts.items():
        models = [each for each in names if _is_model(each)]
        for suffix in (".safetensors", f".safetensors{_INDEX}", ".bin"):
            fitting = [each for each in models if each.endswith(suffix)]
            usual = [each for each in fitting if each.removesuffix(suffix) in _USUAL] or fitting[:1]
            if usual:
                break
        else:
            continue
        whole = [usual[0], *_shards(usual[0], names), *(["config.json"] if "config.json" in names else [])]
        found += [f"{prefix}{part}/{each}" for each in whole]
    return found


def fetched(values: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """Return the values of options with paths in place of names on the hub; the errors are those of :func:`fetch`."""
    made = dict(values)
    wanted = values.get("progress")
    shown = wanted if wanted is None or isinstance(wanted, bool) else False
    for name, value in values.items():
        if is_name(value) and isinstance(options[name].kind, File):
            made[name] = fetch(parse(value), shown=shown)
    return made


def shown_name(value: Any) -> str:
    """Return what a model is called after its name on the hub: its file's name, or the repository's."""
    name = parse(value)
    return (name.file or name.repo).rpartition("/")[2]
