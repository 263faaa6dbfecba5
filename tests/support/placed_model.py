"""The tiny model with its modules placed, at the native border; for tests in a process of their own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdcpp_py import engine

from .loopback import Loopback

MODULES = ("diffusion", "te", "vae")


def place(runtime: str, params: str | None = None, pin: bool = False, modules: Sequence[str] = MODULES) -> list[Any]:
    """Return the same placement for several modules."""
    return [{"module": name, "runtime_device": runtime, "params_device": params, "pin": pin} for name in modules]


PINNED = place("Loopback0", "CPU", pin=True)
PAGEABLE = place("Loopback0", "CPU")
ON_DEVICE = place("Loopback0")
ON_CPU = place("CPU")


class Model:
    """The tiny model, placed; a context manager."""

    def __init__(self, checkpoint: Path, placements: Sequence[Any] = (), **options: object) -> None:
        given = {"model_path": bytes(checkpoint), "n_threads": 1, "free_params_immediately": False, **options}
        self.context = engine.Context(given, {}, None, placements)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def draw(self, *loras: tuple[Path, float], progress: Any = None, control: Any = None, **more: object) -> str:
        """Return the hash of a picture's pixels."""
        options: dict[str, Any] = {"prompt": "a cat", "width": 64, "height": 64, "seed": 1}
        options["sample_params"] = {"sample_steps": 1}
        options["loras"] = [{"path": bytes(path), "multiplier": multiplier} for path, multiplier in loras]
        if control is not None:
            options["control_image"] = control
        pixels, _ = self.context.image_generate({**options, **more}, progress=progress)
        return hashlib.sha256(pixels[0][2]).hexdigest()

    def memory(self) -> dict[str, dict[str, Any]]:
        return {row["module"]: row for row in self.context.memory()}

    def transfers(self) -> dict[str, dict[str, Any]]:
        return {row["module"]: row for row in self.context.transfers()}


def draw(checkpoint: Path, placements: Sequence[Any] = (), *loras: tuple[Path, float], **options: object) -> str:
    """Return the hash of one picture of a model that is loaded for it."""
    with Model(checkpoint, placements, **options) as model:
        return model.draw(*loras)


class Pageable(logging.Handler):
    """Collects what the engine's log says about pageable memory."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        logger = logging.getLogger("sdcpp_py.engine")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        if "pageable" in record.getMessage():
            self.lines.append(record.getMessage())


def total(rows: dict[str, dict[str, Any]], field: str) -> Any:
    return sum(row[field] for row in rows.values())


def assert_empty(loopback: Loopback) -> None:
    """Assert that nothing of any model is left on the devices."""
    books = loopback.books()
    left = {name: books[name] for name in ("device_bytes", "host_bytes", "streams_live", "events_live", "violations")}
    assert not any(left.values()), left
