"""What one way of placing a model takes: whether it fits, and how long a picture takes.

The model of time, seconds of one picture once weights that stay have arrived:

- computing takes operations over the device's rate, and bytes over its memory's;
- a network whose weights lie in host memory keeps on the device what the budget leaves beside its compute buffer, and
  copies the rest for each graph, once for all its lanes. Copies from pinned memory run while the device computes, so
  that the longer of the two counts; those from pageable memory are added;
- weights on disk are read before they are copied, ahead of it, but for what host memory keeps, of what is streamed
  first: the slower of disk and bus counts;
- what several networks cannot keep there together is copied once more for each picture.

Figures of docs/streaming.md: a streamed pass takes 1.00 to 1.09 times the longer of the two.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..reports import show_bytes
from .alternative import Alternative, Place
from .demand import GROUPS, PHASES, Demand, NetworkDemand
from .machine import CONVERTED_RATE, OPERATION_SECONDS, PAGEABLE_SHARE, Accelerator, Machine
from .on_disk import BLOCK_BYTES, DISK, RING_BYTES, kept_of, needed_of
from .specs import MODULES

STREAMED_OVERHEAD = 1.03
"""What a streamed pass takes over the longer one of copying and computing: scripts/bench/streaming.py."""
TIGHT_WAIT = 0.6
"""What of the shorter one of copying and computing is waited for where there is room for one segment, on the virtual
clock; with so many segments' room it is less by that number to the power of 1.5."""
DISK_WAIT = 0.5
"""What of the shorter one of reading from disk and computing is waited for, on the virtual clock, where host memory
keeps nothing and segments are far larger than the ring, beyond which nothing is read ahead."""


def evaluate(machine: Machine, demand: Demand, places: Mapping[str, Place], tile: int = 0) -> Alternative:
    """Return what one way of placing a model takes, or why it does not fit.

    Args:
        machine: what there is.
        demand: what a picture takes.
        places: group of modules -> its place.
        tile: side of the VAE's tiles in latent pixels; 0 for no tiles.
    """
    on_disk = _on_disk(places)
    if on_disk and (demand.disk_obstacle or machine.disk_rate is None):
        return Alternative(places, tile, reason=demand.disk_obstacle or "how fast the disk is cannot be told")
    needed = _needed(machine, demand, places)
    if needed > machine.host_bytes:
        needs = f"{show_bytes(needed)} of host memory, of which {show_bytes(machine.host_bytes)} may be taken"
        what = ", with what cannot stay on disk" if on_disk else ""
        return Alternative(places, tile, reason=f"needs {needs}{what}")
    hosted = sum(demand.group_bytes(group) for group, place in places.items() if place.home == "host")
    pageable = hosted > machine.pin_bytes
    kept = _kept(machine, demand, places)
    phases = dict.fromkeys(PHASES.values(), 0.0)
    tight = False
    for gpu in machine.gpus:
        here = {group: place for group, place in places.items() if place.device == gpu.name}
        used = _GpuUse(machine, gpu, demand, here, tile, pageable, kept)
        if used.least > gpu.bytes:
            return Alternative(places, tile, reason=used.too_small())
        tight = tight or used.least > gpu.bytes - gpu.reserve
        for group in here:
            phases[PHASES[group]] += used.seconds(group)
    for group, place in places.items():
        if place.device == machine.cpu:
            phases[PHASES[group]] += sum(_cpu_seconds(machine, network) for network in demand.of_group(group))
    return Alternative(places, tile, phases, tight, pageable, sum(kept.values()))


def _on_disk(places: Mapping[str, Place]) -> list[str]:
    """Return the modules whose weights are on disk, what is read most often first."""
    found = {module for group, place in places.items() if place.home == DISK for module in GROUPS[group]}
    return [module for module in MODULES if module in found]


def _needed(machine: Machine, demand: Demand, places: Mapping[str, Place]) -> int:
    """Return the bytes of host memory without which places do not work."""
    hosted = [group for group, place in places.items() if place.home == "host" or place.device == machine.cpu]
    on_disk = _on_disk(places)
    using = len({place.device for place in places.values() if place.home == DISK})
    rest = needed_of(on_disk, demand.weights, demand.stored, using) if on_disk else 0
    return sum(demand.group_bytes(group) for group in hosted) + rest


def _kept(machine: Machine, demand: Demand, places: Mapping[str, Place]) -> dict[str, int]:
    """Return what host memory keeps of the modules on disk, in bytes."""
    left = machine.pin_bytes - _needed(machine, demand, places)
    return kept_of(_on_disk(places), demand.weights, left, demand.stored)


def _seconds_from_disk(machine: Machine, demand: Demand, module: str) -> float:
    """Return the seconds in which a byte of a module's weights on disk is read, on average."""
    whole = demand.weights.get(module, 0)
    stored = demand.stored.get(module)
    if not whole or machine.disk_rate is None:
        return 0.0
    in_files, converted = (whole, 0) if stored is None else (stored.stored_bytes, stored.converted_bytes)
    return (in_files / machine.disk_rate + converted / CONVERTED_RATE) / whole


def _cpu_seconds(machine: Machine, network: NetworkDemand) -> float:
    """Return what the CPU takes for a network."""
    # Weights are read from memory once a graph, however few products there are with each.
    moved = network.moved_bytes + network.graphs * network.weight_bytes
    return network.flops / machine.cpu_flops + moved / machine.cpu_memory_rate


class _GpuUse:
    """What an alternative takes of one GPU."""

    def __init__(
        self,
        machine: Machine,
        gpu: Accelerator,
        demand: Demand,
        places: Mapping[str, Place],
        tile: int,
        pageable: bool,
        kept: Mapping[str, int],
    ) -> None:
        self.gpu, self.demand, self.tile, self.pageable = gpu, demand, tile, pageable
        self.places = places
        self.kept = kept
        self.from_disk = {module: _seconds_from_disk(machine, demand, module) for module in kept}
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
            if places[group].home != "device"
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
            return computing + once if group == "diffusion" else self._both(network, computing, once)
        lanes = self._lanes(network)
        return min(
            self._streamed(network, computing, once, count, room - (count - 1) * network.compute_bytes)
            for count in range(1, lanes + 1)
        )

    def _blocks(self, network: NetworkDemand) -> bool:
        """Tell whether copies hold up the host: weights on disk are copied from a pinned ring."""
        return not self.gpu.pins or (self.pageable and network.module not in self.from_disk)

    def _kept(self, network: NetworkDemand) -> float:
        """Return what host memory keeps of a network's weights on disk, in bytes."""
        whole = self.demand.weights.get(network.module, 0)
        segment = _slots(network)  # whose first and last blocks hold something else, too
        of_use = segment / (segment + BLOCK_BYTES)
        return of_use * self.kept.get(network.module, 0) * network.weight_bytes / whole if whole else 0.0

    def _arriving(self, network: NetworkDemand, copied: float, kept: float) -> float:
        """Return the seconds in which some bytes arrive on the device; of those on disk host memory keeps a part."""
        bus = self.gpu.bus_rate * (PAGEABLE_SHARE if self._blocks(network) else 1.0)
        return max(copied / bus, max(0.0, copied - kept) * self.from_disk.get(network.module, 0.0))

    def _copied(self, network: NetworkDemand, room: int) -> int:
        """Return what of a network is streamed for each graph, in bytes, where its weights have some room."""
        if network.weight_bytes <= room:
            return 0
        return min(network.weight_bytes - network.fixed_bytes, network.weight_bytes - room + _slots(network))

    def _room(self, network: NetworkDemand) -> int:
        """Return what a network's weights may take beside its compute buffer."""
        return self.budget - self.resident - self._compute(network)

    def _streamed(self, network: NetworkDemand, computing: float, once: float, lanes: int, room: int) -> float:
        """Return the seconds of a network that is streamed with a number of lanes."""
        if room < network.streaming_bytes - network.compute_bytes:
            return float("inf")
        copied = self._copied(network, room)
        kept = self._kept(network)
        graphs = network.graphs / lanes
        copying = graphs * self._arriving(network, copied, kept)
        reading = graphs * max(0.0, copied - kept) * self.from_disk.get(network.module, 0.0)
        segments = max(1.0, (room - network.fixed_bytes) / max(1, _slots(network)))
        waiting = 0.0 if self._blocks(network) else TIGHT_WAIT / segments**1.5 * min(computing, copying)
        beyond = max(0.0, 1.0 - RING_BYTES / max(1, _slots(network))) * max(0.0, 1.0 - kept / max(1, copied))
        waiting += DISK_WAIT * beyond * min(computing, reading)
        # What stays is copied before the first step, little of which hides that.
        first = once if network.module == "diffusion" else 0.0
        return self._both(network, computing, copying) * STREAMED_OVERHEAD + waiting + first

    def _both(self, network: NetworkDemand, computing: float, copying: float) -> float:
        """Return what computing and copying take together."""
        return computing + copying if self._blocks(network) else max(computing, copying)

    def _lanes(self, network: NetworkDemand) -> int:
        """Return the most passes of a step that may share a copy."""
        return max(1, min(8, self.demand.passes)) if network.module == "diffusion" else 1

    def recopied_seconds(self, network: NetworkDemand) -> float:
        """Return what copying takes, once a picture, of a network that others take the place of meanwhile."""
        if self.all_stay:
            return 0.0
        left = max(0.0, self._kept(network) - self._copied(network, self._room(network)))
        return self._arriving(network, self._evicted(network), left)

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
    kept = _kept(machine, demand, each.places)
    use = _GpuUse(machine, gpu, demand, here, each.tile, each.pageable, kept)
    return sum(use.recopied_seconds(network) for network in use.networks["diffusion"])
