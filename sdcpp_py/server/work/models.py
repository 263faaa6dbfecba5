"""The models that a worker holds: loaded when a job needs them, and given back by least recent use or when idle."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import DeviceMemoryError, ModelError
from ...modes import UPSCALE
from ...pipeline import StableDiffusion
from ...progress import ProgressEvent
from ...upscaler import Upscaler
from ..model_list import ServedModel

log = logging.getLogger("sdcpp_py.server")

Model = StableDiffusion | Upscaler


class Held:
    """A loaded model.

    Attributes:
        model: it.
        bytes: what its weights take.
        modes: the modes that it has.
        used: when it was used last, by the monotonic clock.
        busy: whether a job uses it.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.bytes = sum(row.bytes for row in model.memory_report().modules)
        self.modes = model.modes if isinstance(model, StableDiffusion) else (UPSCALE.name,)
        self.used = time.monotonic()


class Models:
    """The models of one worker.

    Args:
        served: those that may be loaded, by name.
        device: the runtime backend of models that name none; empty for the engine's choice.
        threads: CPU threads of models that name none; None for as many as there are cores.
        budget: bytes of weights that are kept, the one in use not counted out.
    """

    def __init__(self, served: Mapping[str, ServedModel], device: str, threads: int | None, budget: float) -> None:
        self.served = dict(served)
        self._device = device
        self._threads = threads
        self._budget = budget
        self._held: OrderedDict[str, Held] = OrderedDict()

    def get(self, name: str, progress: Callable[[ProgressEvent], object]) -> Model:
        """Return a model, loaded if it is not.

        Args:
            name: of the model.
            progress: hears of loading.

        Raises:
            ModelError: there is none of this name.
            SdcppError: as of loading.
        """
        if (held := self._held.get(name)) is not None:
            if not held.model.closed:
                self._held.move_to_end(name)
                held.used = time.monotonic()
                return held.model
            del self._held[name]  # the engine failed inside it
        if name not in self.served:
            raise ModelError(f"model {name!r} is not served; there are {', '.join(self.served)}")
        served = self.served[name]
        self._make_room(served.file_bytes())
        try:
            model = self._load(served, progress)
        except DeviceMemoryError:
            if not self._held:
                raise
            self.unload_all()
            model = self._load(served, progress)
        self._held[name] = Held(model)
        self._make_room(0, keep=name)
        return model

    def _load(self, served: ServedModel, progress: Callable[[ProgressEvent], object]) -> Model:
        """Load a model."""
        options: dict[str, Any] = dict(served.loading)
        if self._device and options.get("runtime_backend") is None:
            options["runtime_backend"] = self._device
        if self._threads is not None and options.get("threads") is None:
            options["threads"] = self._threads
        if served.kind == "upscaler":
            return Upscaler(**options, progress=progress)
        return StableDiffusion(**options, progress=progress)

    def _make_room(self, size: float, keep: str = "") -> None:
        """Unload what was used least recently until so many bytes more fit into the budget."""
        for name in list(self._held):
            if sum(each.bytes for each in self._held.values()) + size <= self._budget:
                return
            if name != keep:
                self.unload(name)

    def unload(self, name: str) -> bool:
        """Unload a model; tell whether it was loaded."""
        held = self._held.pop(name, None)
        if held is None:
            return False
        held.model.close()
        log.info("unloaded %s", name)
        return True

    def unload_all(self) -> None:
        """Unload every model."""
        for name in list(self._held):
            self.unload(name)

    def unload_idle(self, seconds: float) -> bool:
        """Unload what was not used for so many seconds; tell whether there was any."""
        old = time.monotonic() - seconds
        idle = [name for name, held in self._held.items() if held.used < old]
        for name in idle:
            self.unload(name)
        return bool(idle)

    def touch(self, name: str) -> None:
        """Note that a model was used until now."""
        if name in self._held:
            self._held[name].used = time.monotonic()

    def listed(self) -> dict[str, int]:
        """Return the bytes of each model that is loaded."""
        return {name: held.bytes for name, held in list(self._held.items())}

    def modes(self) -> dict[str, list[str]]:
        """Return the modes of each model that is loaded."""
        return {name: list(held.modes) for name, held in list(self._held.items())}
