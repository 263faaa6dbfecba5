"""What a plan predicted of a call, and what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..reports import table


@dataclass(frozen=True)
class PlanReport:
    """Predicted and measured seconds of the last call, by phase.

    Attributes:
        picture: what was drawn.
        tile: side of the VAE's tiles that the planner chose, in latent pixels; 0 for none.
        predicted: phase of :class:`sdcpp_py.Timings` -> seconds; what a first picture copies besides is not in it.
        happened: phase -> seconds.
        replanned: how often the model was loaded anew, since memory was gone.
    """

    picture: str
    tile: int
    predicted: Mapping[str, float]
    happened: Mapping[str, float]
    replanned: int

    @property
    def ratio(self) -> float | None:
        """What happened over what was predicted, in all; None where nothing was predicted."""
        predicted = sum(self.predicted.values())
        return sum(self.happened[phase] for phase in self.predicted) / predicted if predicted > 0 else None

    def __str__(self) -> str:
        """Return a table with a line for each phase."""
        rows = [
            (phase, f"{seconds:.3f}", f"{self.happened[phase]:.3f}", _ratio(self.happened[phase], seconds))
            for phase, seconds in self.predicted.items()
        ]
        whole = sum(self.predicted.values()), sum(self.happened[phase] for phase in self.predicted)
        rows.append(("total", f"{whole[0]:.3f}", f"{whole[1]:.3f}", _ratio(whole[1], whole[0])))
        tiles = f", the VAE in tiles of {self.tile}" if self.tile else ""
        again = f"; loaded anew {self.replanned} times, since memory was gone" if self.replanned else ""
        header = ("phase", "predicted", "happened", "ratio")
        return f"{self.picture}{tiles}{again}\n{table(header, rows, header[1:])}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {
            "picture": self.picture,
            "tile": self.tile,
            "predicted": dict(self.predicted),
            "happened": dict(self.happened),
            "ratio": self.ratio,
            "replanned": self.replanned,
        }


def _ratio(happened: float, predicted: float) -> str:
    return f"{happened / predicted:.2f}" if predicted > 0 else "-"
