"""What a picture takes of the devices: memory and computing of each network, by a survey of its graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .on_disk import Stored

GROUPS: dict[str, tuple[str, ...]] = {
    "diffusion": ("diffusion", "controlnet", "photomaker"),
    "te": ("te", "clip_vision"),
    "vae": ("vae", "upscaler"),
}
"""Modules that are placed together, by the one that the others follow: they are computed in one phase."""

PHASES = {"te": "text", "diffusion": "sampling", "vae": "decoding"}
"""Group -> the phase of :class:`sdcpp_py.Timings` in which it computes most."""

TILES = (128, 64, 32)
"""Sides of the VAE's tiles that are tried, in latent pixels, where it does not fit at once; the engine's own is 32.

Smaller ones shift colours: a VAE's group norms then see too little of the picture.
"""


@dataclass(frozen=True)
class NetworkDemand:
    """What one network takes for one picture.

    Attributes:
        module: that it belongs to.
        network: the engine's name of it.
        weight_bytes: of its weights that its graphs read.
        fixed_bytes: the part that stays on the device while it computes, however it is streamed.
        largest_segment_bytes: the largest part that is streamed as one.
        compute_bytes: its largest compute buffer, and what computing takes besides.
        graphs: passes.
        operations: in all of them.
        flops: of products and convolutions, in all of them.
        moved_bytes: read and written by other operations, in all of them.
    """

    module: str
    network: str
    weight_bytes: int
    fixed_bytes: int
    largest_segment_bytes: int
    compute_bytes: int
    graphs: float
    operations: float
    flops: float
    moved_bytes: float

    @property
    def streaming_bytes(self) -> int:
        """The least device memory that it computes in: its compute buffer and its largest segment."""
        return min(self.weight_bytes, self.fixed_bytes + self.largest_segment_bytes) + self.compute_bytes

    def times(self, count: float) -> NetworkDemand:
        """Return the same for so many times as many graphs."""
        return replace(
            self,
            graphs=self.graphs * count,
            operations=self.operations * count,
            flops=self.flops * count,
            moved_bytes=self.moved_bytes * count,
        )


@dataclass(frozen=True)
class Demand:
    """What one call takes.

    Attributes:
        networks: each network that computes.
        weights: module -> bytes of all its weights.
        tiled: side of the VAE's tiles -> the VAE's networks with these; empty where tiles are not for the planner to
            choose.
        passes: of the denoiser in each step, of all pictures that are sampled at the same time.
        text: what is drawn, for a reader.
        stored: module -> what of its weights could stay in the model's files; one that is not there could as a whole.
        disk_obstacle: why none can; empty where they can.
    """

    networks: tuple[NetworkDemand, ...]
    weights: Mapping[str, int]
    tiled: Mapping[int, tuple[NetworkDemand, ...]]
    passes: int
    text: str
    stored: Mapping[str, Stored] = field(default_factory=dict)
    disk_obstacle: str = ""

    def of_group(self, group: str, tile: int = 0) -> tuple[NetworkDemand, ...]:
        """Return the networks of a group, the VAE's with tiles of a side, 0 for none."""
        if group == "vae" and tile:
            return self.tiled[tile]
        return tuple(network for network in self.networks if network.module in GROUPS[group])

    def group_bytes(self, group: str) -> int:
        """Return what all weights of a group take."""
        return sum(self.weights.get(module, 0) for module in GROUPS[group])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {"picture": self.text, "passes": self.passes, "networks": [asdict(row) for row in self.networks]}


def networks_of(rows: Iterable[Mapping[str, Any]]) -> tuple[NetworkDemand, ...]:
    """Return the networks of the engine's rows."""
    return tuple(NetworkDemand(**row) for row in rows)


def scaled(networks: Sequence[NetworkDemand], passes: float, pictures: int) -> tuple[NetworkDemand, ...]:
    """Return a survey of few steps and one picture for as many as are drawn.

    Args:
        networks: as they were surveyed.
        passes: how many times as many steps there are.
        pictures: how many there are.
    """
    counts = {"diffusion": passes * pictures, "vae": float(pictures)}
    groups = {module: group for group, modules in GROUPS.items() for module in modules}
    return tuple(network.times(counts.get(groups[network.module], 1.0)) for network in networks)
