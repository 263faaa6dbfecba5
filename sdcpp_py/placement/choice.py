"""The fastest plan that fits: every way of placing a model's modules is timed, and the best one is taken.

The model of time, seconds of one picture once weights that stay have arrived:

- computing takes operations over the device's rate, and bytes over its memory's;
- a network whose weights lie in host memory keeps on the device what the budget leaves beside its compute buffer, and
  copies the rest for each graph, once for all its lanes. Copies from pinned memory run while the device computes, so
  that the longer of the two counts; those from pageable memory are added;
- what several networks cannot keep there together is copied once more for each picture.

Figures of docs/streaming.md: a streamed pass takes 1.00 to 1.09 times the longer of the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..reports import show_bytes, table
from .demand import GROUPS, PHASES, Demand, NetworkDemand
from .machine import OPERATION_SECONDS, PAGEABLE_SHARE, Accelerator, Machine

STREAMED_OVERHEAD = 1.03
"""What a streamed pass takes over the longer one of copying and computing: scripts/bench/streaming.py."""
TIGHT_PENALTY = 1.25
"""A plan that needs a device's reserve is taken where every other one takes this many times as long."""
SHOWN = 8
"""How many rejected alternatives a plan names."""


@dataclass(frozen=True)
class Place:
    """Where a group of modules computes and where its weights lie.

    Attributes:
        device: that computes.
        home: ``device`` (its weights live there) or ``host`` (in host memory, from where a GPU's are streamed). Weights
            on disk would be a third one: its link is one more rate of ``Accelerator``, and ``_homes`` names it.
    """

    device: str
    home: str

    def __str__(self) -> str:
        """Return it as a cell of a table."""
        return f"{self.device} streamed" if self.home == "host" else self.device


@dataclass(frozen=True)
class Alternative:
    """One way of placing a model's modules, and what became of it.

    Attributes:
        places: group of modules -> its place.
        tile: side of the VAE's tiles in latent pixels; 0 for no tiles.
        phases: seconds of each phase of a picture, as predicted; empty where it does not fit.
        tight: whether it needs the reserve of a device.
        pageable: whether some of the weights that are copied cannot be pinned.
        reason: why it is not taken; empty for the one that is.
    """

    places: Mapping[str, Place]
    tile: int
    phases: Mapping[str, float] = field(default_factory=dict)
    tight: bool = False
    pageable: bool = False
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
                module: "cpu" if place.home == "host" else place.device for module, place in modules.items()
            },
            "stream_layers": any(place.home == "host" for place in self.places.values()),
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
            "reason": self.reason,
        }


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


def _homes(machine: Machine) -> list[Place]:
    """Return every place on a machine."""
    # A GPU for each group is as many as can help: the first one, and the others with most memory.
    others = sorted(machine.gpus[1:], key=lambda gpu: -gpu.bytes)[: len(GROUPS) - 1]
    gpus = [*machine.gpus[:1], *others]
    return [*(Place(gpu.name, home) for gpu in gpus for home in ("device", "host")), Place(machine.cpu, "device")]


def alternatives(machine: Machine, demand: Demand) -> Iterator[Alternative]:
    """Yield every way of placing a model on a machine, timed; the VAE's tiles are for GPUs only."""
    groups = [group for group in GROUPS if demand.group_bytes(group) or demand.of_group(group)]
    for places in itertools.product(_homes(machine), repeat=len(groups)):
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
    """Return what alternatives are compared by: time, then fewer tiles, then fewer modules in host memory."""
    slower = TIGHT_PENALTY if each.tight else 1.0
    streamed = sum(place.home == "host" for place in each.places.values())
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
        reason = "no faster, and takes more host memory" if _rank(each)[2] > _rank(best)[2] else "no faster"
    return Alternative(each.places, each.tile, each.phases, each.tight, each.pageable, reason)


def evaluate(machine: Machine, demand: Demand, places: Mapping[str, Place], tile: int = 0) -> Alternative:
    """Return what one way of placing a model takes, or why it does not fit.

    Args:
        machine: what there is.
        demand: what a picture takes.
        places: group of modules -> its place.
        tile: side of the VAE's tiles in latent pixels; 0 for no tiles.
    """
    hosted = sum(demand.group_bytes(group) for group, place in places.items() if place.home == "host")
    on_cpu = sum(demand.group_bytes(group) for group, place in places.items() if place.device == machine.cpu)
    if hosted + on_cpu > machine.host_bytes:
        needs = f"{show_bytes(hosted + on_cpu)} of host memory, of which {show_bytes(machine.host_bytes)} may be taken"
        return Alternative(places, tile, reason=f"needs {needs}")
    pageable = hosted > machine.pin_bytes
    phases = dict.fromkeys(PHASES.values(), 0.0)
    tight = False
    for gpu in machine.gpus:
        here = {group: place for group, place in places.items() if place.device == gpu.name}
        used = _GpuUse(gpu, demand, here, tile, pageable)
        if used.least > gpu.bytes:
            return Alternative(places, tile, reason=used.too_small())
        tight = tight or used.least > gpu.bytes - gpu.reserve
        for group in here:
            phases[PHASES[group]] += used.seconds(group)
    for group, place in places.items():
        if place.device == machine.cpu:
            phases[PHASES[group]] += sum(_cpu_seconds(machine, network) for network in demand.of_group(group))
    return Alternative(places, tile, phases, tight, pageable)


def _cpu_seconds(machine: Machine, network: NetworkDemand) -> float:
    """Return what the CPU takes for a network."""
    # Weights are read from memory once a graph, however few products there are with each.
    moved = network.moved_bytes + network.graphs * network.weight_bytes
    return network.flops / machine.cpu_flops + moved / machine.cpu_memory_rate


class _GpuUse:
    """What an alternative takes of one GPU."""

    def __init__(
        self, gpu: Accelerator, demand: Demand, places: Mapping[str, Place], tile: int, pageable: bool
    ) -> None:
        self.gpu, self.demand, self.tile, self.pageable = gpu, demand, tile, pageable
        self.places = places
        self.networks = {group: demand.of_group(group, tile) for group in places}
        self.resident = sum(demand.group_bytes(group) for group, place in places.items() if place.home == "device")
        self.needs: list[tuple[int, NetworkDemand]] = [
            (self._least(group, network), network) for group, networks in self.networks.items() for network in networks
        ]
        self.least = max([self.resident, *(need for need, _ in self.needs)], default=0) if places else 0
        self.budget = max(gpu.bytes - gpu.reserve, min(self.least, gpu.bytes))
        self.hosted = [
            (group, network)
            for group, networks in self.networks.items()
            for network in networks
            if places[group].home == "host"
        ]
        most = max((self._compute(network) for networks in self.networks.values() for network in networks), default=0)
        # All that is hosted stays from picture to picture, beside whatever computes.
        self.all_stay = self.resident + sum(row.weight_bytes for _, row in self.hosted) + most <= self.budget

    def _compute(self, network: NetworkDemand) -> int:
        return network.compute_bytes + self.gpu.base_bytes

    def _least(self, group: str, network: NetworkDemand) -> int:
        """Return the least memory in which a network computes, with everything that lives on the device."""
        if self.places[group].home == "device":
            return self.resident + self._compute(network)
        return self.resident + network.streaming_bytes + self.gpu.base_bytes

    def too_small(self) -> str:
        """Say what does not fit."""
        need, network = max(self.needs, key=lambda each: each[0], default=(0, None))
        if network is None or self.resident > self.gpu.bytes:
            what = f"weights of {show_bytes(self.resident)}"
        else:
            what = f"{show_bytes(need)} for {network.module}, its compute buffer {show_bytes(self._compute(network))}"
        return f"{self.gpu.name} has {show_bytes(self.gpu.bytes)}, not {what}"

    def seconds(self, group: str) -> float:
        """Return what the device takes for a group's networks."""
        return sum(self._network_seconds(group, network) for network in self.networks[group])

    def _network_seconds(self, group: str, network: NetworkDemand) -> float:
        gpu = self.gpu
        computing = (
            network.flops / gpu.flops + network.moved_bytes / gpu.memory_rate + network.operations * OPERATION_SECONDS
        )
        if self.places[group].home == "device" or self.all_stay:
            return computing
        once = self.recopied_seconds(network)
        room = self._room(network)
        if network.weight_bytes <= room:
            # It fits by itself, and others take its place between two pictures.
            return computing + once if group == "diffusion" else self._both(computing, once)
        lanes = self._lanes(network)
        return min(
            self._streamed(network, computing, once, count, room - (count - 1) * network.compute_bytes)
            for count in range(1, lanes + 1)
        )

    def _rate(self) -> float:
        """Return the bytes of weights a second that arrive from host memory."""
        return self.gpu.bus_rate * (PAGEABLE_SHARE if self.pageable or not self.gpu.pins else 1.0)

    def _room(self, network: NetworkDemand) -> int:
        """Return what a network's weights may take beside its compute buffer."""
        return self.budget - self.resident - self._compute(network)

    def _streamed(self, network: NetworkDemand, computing: float, once: float, lanes: int, room: int) -> float:
        """Return the seconds of a network that is streamed with a number of lanes."""
        if room < network.streaming_bytes - network.compute_bytes:
            return float("inf")
        copied = min(network.weight_bytes - network.fixed_bytes, network.weight_bytes - room + _slots(network))
        copying = network.graphs / lanes * copied / self._rate()
        return self._both(computing, copying + (once if network.module == "diffusion" else 0.0)) * STREAMED_OVERHEAD

    def _both(self, computing: float, copying: float) -> float:
        """Return what computing and copying take together."""
        return computing + copying if self.pageable or not self.gpu.pins else max(computing, copying)

    def _lanes(self, network: NetworkDemand) -> int:
        """Return the most passes of a step that may share a copy."""
        return max(1, min(8, self.demand.passes)) if network.module == "diffusion" else 1

    def recopied_seconds(self, network: NetworkDemand) -> float:
        """Return what copying takes, once a picture, of a network that others take the place of meanwhile."""
        return 0.0 if self.all_stay else self._evicted(network) / self._rate()

    def _evicted(self, network: NetworkDemand) -> int:
        """Return the bytes of a network that others take the place of from one picture to the next."""
        others = [row for _, row in self.hosted if row is not network]
        if network.module != "diffusion":
            return network.weight_bytes
        room = self._room(network)
        stay = network.weight_bytes if network.weight_bytes <= room else max(0, room - _slots(network))
        largest = max((row.streaming_bytes + self.gpu.base_bytes for row in others), default=0)
        on_device = [
            self._compute(row)
            for group, networks in self.networks.items()
            for row in networks
            if self.places[group].home == "device"
        ]
        needed = max([largest, *on_device], default=0)
        return max(0, min(stay, self.resident + stay + needed - self.budget))


def _slots(network: NetworkDemand) -> int:
    """Return what the slots of a streamed network take: one segment is copied ahead."""
    return min(network.largest_segment_bytes, network.weight_bytes)


def recopied_seconds(machine: Machine, demand: Demand, each: Alternative) -> float:
    """Return the part of an alternative's seconds in which the denoiser is copied again that made room for others."""
    place = each.places["diffusion"]
    gpu = next((gpu for gpu in machine.gpus if gpu.name == place.device), None)
    if gpu is None or place.home == "device":
        return 0.0
    here = {group: place for group, place in each.places.items() if place.device == gpu.name}
    use = _GpuUse(gpu, demand, here, each.tile, each.pageable)
    return sum(use.recopied_seconds(network) for network in use.networks["diffusion"])


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
