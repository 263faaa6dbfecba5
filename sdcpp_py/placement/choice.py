"""The fastest plan that fits: every way of placing a model's modules is timed, and the best one is taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..reports import show_bytes, table
from .alternative import Alternative, Place
from .demand import GROUPS, Demand
from .evaluation import evaluate
from .machine import Machine
from .on_disk import DISK

TIGHT_PENALTY = 1.25
"""A plan that needs a device's reserve is taken where every other one takes this many times as long."""
SHOWN = 8
"""How many rejected alternatives a plan names."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for a machine and a picture, and what was not.

    Attributes:
        chosen: the one that is taken.
        rejected: for each group and place the fastest other one with that, or why there is none; the fastest first.
        considered: how many there were in all.
        picture: what it was chosen for.
        machine: what it was chosen on.
    """

    chosen: Alternative
    rejected: tuple[Alternative, ...]
    considered: int
    picture: str
    machine: Machine

    @property
    def seconds(self) -> float:
        """Predicted seconds of a call."""
        return self.chosen.seconds or 0.0

    def __str__(self) -> str:
        """Return what was chosen and what was rejected, as a table."""
        groups = list(self.chosen.places)
        shown = [each for each in self.rejected if each.fits][:SHOWN]
        shown += [each for each in self.rejected if not each.fits][: max(0, SHOWN - len(shown))]
        rows = [
            (
                *(str(each.places[group]) for group in groups),
                f"{each.tile}x{each.tile}" if each.tile else "-",
                "-" if each.seconds is None else show_duration(each.seconds),
                each.reason or "chosen",
            )
            for each in (self.chosen, *shown)
        ]
        more = self.considered - len(rows)
        lines: list[str] = [
            f"chosen for {self.picture}, {show_duration(self.seconds)} predicted",
            str(self.machine),
            table((*groups, "vae tiles", "seconds", "verdict"), rows, ("seconds",)),
        ]
        if self.chosen.tile:
            lines.append(
                f"the VAE decodes in tiles of {self.chosen.tile} latent pixels that overlap by half, the engine's own"
            )
        if any(place.home == DISK for place in self.chosen.places.values()):
            lines.append(f"of what is on disk host memory keeps {show_bytes(self.chosen.kept_bytes)}")
        return "\n".join([*lines, *([f"and {more} more that are slower or do not fit"] if more > 0 else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {
            "picture": self.picture,
            "seconds": self.seconds,
            "chosen": self.chosen.to_dict(),
            "rejected": [each.to_dict() for each in self.rejected],
            "considered": self.considered,
            "machine": self.machine.to_dict(),
        }


def show_duration(seconds: float) -> str:
    """Return seconds as text, with three digits."""
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def _homes(machine: Machine, demand: Demand) -> list[Place]:
    """Return every place on a machine; the disk is one where host memory does not hold all weights."""
    on_disk = machine.disk_rate is not None and not machine.holds(sum(map(demand.group_bytes, GROUPS)))
    homes = ("device", "host", DISK) if on_disk else ("device", "host")
    # A GPU for each group is as many as can help: the first one, and the others with most memory.
    others = sorted(machine.gpus[1:], key=lambda gpu: -gpu.bytes)[: len(GROUPS) - 1]
    gpus = [*machine.gpus[:1], *others]
    return [*(Place(gpu.name, home) for gpu in gpus for home in homes), Place(machine.cpu, "device")]


def alternatives(machine: Machine, demand: Demand) -> Iterator[Alternative]:
    """Yield every way of placing a model on a machine, timed; the VAE's tiles are for GPUs only."""
    groups = [group for group in GROUPS if demand.group_bytes(group) or demand.of_group(group)]
    for places in itertools.product(_homes(machine, demand), repeat=len(groups)):
        placed = dict(zip(groups, places, strict=True))
        on_cpu = "vae" not in placed or placed["vae"].device == machine.cpu
        for tile in (0, *(() if on_cpu else demand.tiled)):
            yield evaluate(machine, demand, placed, tile)


def choose(
    machine: Machine, demand: Demand, without: Callable[[Alternative], bool] = lambda each: False
) -> Choice | None:
    """Return the fastest alternative that fits, or None where none does.

    Args:
        machine: what there is.
        demand: what a picture takes.
        without: tells what was tried in vain.
    """
    found = [each for each in alternatives(machine, demand) if not without(each)]
    fitting = sorted((each for each in found if each.fits), key=_rank)
    if not fitting:
        return None
    best = fitting[0]
    rejected = (_rejected(each, best) for each in _told(best, fitting, found))
    return Choice(best, tuple(rejected), len(found), demand.text, machine)


def _told(best: Alternative, fitting: Sequence[Alternative], found: Sequence[Alternative]) -> list[Alternative]:
    """Return those that say most of why the best one is it: for each group and each other place the best one with that.

    Where none with it fits it is the best one with that place alone changed, which says what is missing.

    Args:
        best: the one that is taken.
        fitting: all that fit, the best one first.
        found: all.
    """
    told: dict[tuple[Any, ...], Alternative] = {}
    for group, place in sorted({item for each in found for item in each.places.items()}, key=lambda item: str(item)):
        if best.places[group] != place:
            changed = {**best.places, group: place}
            one = next((each for each in fitting if each.places[group] == place), None)
            one = one or next((each for each in found if each.places == changed), None)
            if one is not None:
                told.setdefault(one.key, one)
    if best.tile:
        whole = next((each for each in found if not each.tile and each.places == best.places), None)
        told |= {} if whole is None else {whole.key: whole}
    return sorted(told.values(), key=lambda each: (not each.fits, _rank(each)))


def _rank(each: Alternative) -> tuple[float, int, int]:
    """Return what alternatives are compared by: time, fewer tiles, fewer modules in host memory, or even on disk."""
    slower = TIGHT_PENALTY if each.tight else 1.0
    streamed = sum(("device", "host", DISK).index(place.home) for place in each.places.values())
    return (slower * (each.seconds or 0.0), 1 if each.tile else 0, streamed)


def _rejected(each: Alternative, best: Alternative) -> Alternative:
    """Return an alternative with the reason why it is not taken."""
    if each.seconds is None or not best.seconds:
        return each
    if each.seconds > 1.005 * best.seconds:
        reason = f"{each.seconds / best.seconds:.3g} times as long"
    elif each.tight and not best.tight:
        reason = "needs the memory that a device keeps in reserve"
    else:
        reason = "no faster, and takes more host memory or disk" if _rank(each)[2] > _rank(best)[2] else "no faster"
    return replace(each, reason=reason)


def best_tile(
    machine: Machine, demand: Demand, places: Mapping[str, Place], without: Sequence[Alternative] = ()
) -> Alternative | None:
    """Return what a model does whose modules are placed already: no tiles where the VAE fits, else the fastest ones.

    Args:
        machine: what there is.
        demand: what a picture takes.
        places: group of modules -> its place.
        without: what was tried in vain.
    """
    tried = {each.key for each in without}
    tiles = (0, *demand.tiled) if "vae" in places and places["vae"].device != machine.cpu else (0,)
    found = [evaluate(machine, demand, places, tile) for tile in tiles]
    return min((each for each in found if each.fits and each.key not in tried), key=_rank, default=None)
