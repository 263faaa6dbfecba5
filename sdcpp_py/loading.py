"""What a model is loaded with: the options that were asked for, checked, and the files that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import hub, models, placement
from .errors import ModelError
from .host_threads import threads_for
from .model_files import StrPath
from .modes import LOADING
from .options.kinds import File


@dataclass(frozen=True)
class Loading:
    """Options of loading, as they are used.

    Attributes:
        values: the options; what was named on a hub is fetched.
        given: the engine's fields of them.
        embeddings: textual inversions, which are checked before the engine gets them: name -> path.
        files: argument -> path of its files, for messages.
        named: what the model was called: a path, or a name on a hub.
        suits: defaults of drawing that suit the model.
    """

    values: Mapping[str, Any]
    given: dict[str, Any]
    embeddings: Mapping[str, Any]
    files: Mapping[str, StrPath | None]
    named: StrPath
    suits: Mapping[str, Any]

    @property
    def model(self) -> StrPath:
        """The file or folder of the denoiser."""
        return denoiser_of(self.values)


def denoiser_of(values: Mapping[str, Any]) -> StrPath:
    """Return what options of loading name as the model, or as its denoiser where they name its parts."""
    return values["diffusion_model"] if values["model"] is None else values["model"]  # type: ignore[no-any-return]


def checked_loading(options: Mapping[str, Any]) -> Loading:
    """Return options of loading as they are used.

    Raises:
        ArgumentError: an option is unknown or out of range.
        ModelError: parts of a model are named without the rest.
        HubError: what was named on a hub cannot be fetched.
    """
    values = LOADING.check(options)
    suits: Mapping[str, Any] = {}
    if values["model"] is None and values["diffusion_model"] is None:
        parts = [name for name in ("clip_l", "clip_g", "t5xxl", "llm") if values[name]]
        if parts:
            raise ModelError(f"{', '.join(parts)} is part of a model; pass model=... or diffusion_model=... too")
        values["model"], suits = models.EMBEDDED, models.EMBEDDED_DEFAULTS
    placement.check_max_vram(values["max_vram"])
    named = denoiser_of(values)
    values = hub.fetched(values, LOADING.declared)
    values = {**LOADING.resolve(values), "threads": threads_for(values["threads"])}
    # The engine would free the weights after the first image; an object here lives until it is closed.
    given = {**LOADING.fields(values), "free_params_immediately": False}
    return Loading(
        values=values,
        given=given,
        embeddings=given.pop("embeddings", {}),
        files={name: values[name] for name, option in LOADING.declared.items() if isinstance(option.kind, File)},
        named=named,
        suits=suits,
    )
