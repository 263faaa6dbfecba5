"""One way of placing a model's modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .demand import GROUPS
from .on_disk import DISK


@dataclass(frozen=True)
class Place:
    """Where a group of modules computes and where its weights lie.

    Attributes:
        device: that computes.
        home: ``device`` (its weights live there), ``host`` (in host memory, from where a GPU's are streamed) or
            ``disk`` (in the model's files, but for what host memory keeps of them).
    """

    device: str
    home: str

    def __str__(self) -> str:
        """Return it as a cell of a table."""
        return self.device + {"host": " streamed", DISK: " from disk"}.get(self.home, "")


@dataclass(frozen=True)
class Alternative:
    """One way of placing a model's modules, and what became of it.

    Attributes:
        places: group of modules -> its place.
        tile: side of the VAE's tiles in latent pixels; 0 for no tiles.
        phases: seconds of each phase of a picture, as predicted; empty where it does not fit.
        tight: whether it needs the reserve of a device.
        pageable: whether some of the weights in host memory that are copied cannot be pinned.
        kept_bytes: of weights on disk, what host memory keeps.
        reason: why it is not taken; empty for the one that is.
    """

    places: Mapping[str, Place]
    tile: int
    phases: Mapping[str, float] = field(default_factory=dict)
    tight: bool = False
    pageable: bool = False
    kept_bytes: int = 0
    reason: str = ""

    @property
    def fits(self) -> bool:
        """Whether it can be done at all."""
        return bool(self.phases)

    @property
    def seconds(self) -> float | None:
        """Seconds of a picture, as predicted; None where it does not fit."""
        return sum(self.phases.values()) if self.phases else None

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others."""
        return (*((group, place) for group, place in sorted(self.places.items())), self.tile)

    def specs(self) -> dict[str, Any]:
        """Return the options of placement that ask for it."""
        modules = {module: self.places[group] for group, names in GROUPS.items() for module in names}
        return {
            "runtime_backend": {module: place.device for module, place in modules.items()},
            "params_backend": {
                module: {"host": "cpu", DISK: DISK}.get(place.home, place.device) for module, place in modules.items()
            },
            "stream_layers": any(place.home != "device" for place in self.places.values()),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {
            "places": {group: {"device": place.device, "home": place.home} for group, place in self.places.items()},
            "vae_tile": self.tile,
            "seconds": self.seconds,
            "phases": dict(self.phases),
            "tight": self.tight,
            "pageable": self.pageable,
            "kept_bytes": self.kept_bytes,
            "reason": self.reason,
        }
