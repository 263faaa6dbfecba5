"""The machine that a plan is made for, as far as time and memory go: this one, or one that is only described.

Rates are what this process has seen of a device where it has drawn with it, else the stated figures below.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..reports import show_bytes

if TYPE_CHECKING:
    from ..devices import Device
    from .pinning import PinBudget

# Stated figures: what is taken for a device that nothing is known of.
GPU_FLOPS = 25e12
"""Of a GPU, a second: the mid-range card of ``native/sdcpp/streaming/cost.cpp``."""
GPU_MEMORY_RATE = 360e9
"""Bytes that it reads and writes of its own memory, a second; likewise."""
CPU_FLOPS = 65e9
"""Of each core, a second: SD 1.5 at 512x512, 0.8e12 operations a pass, with the kernels of this package and AVX-512."""
CPU_MEMORY_RATE = 8e9
"""Bytes that all cores read and write, a second: what two of them do beside products, of a desktop's two channels."""
BUS_RATE = 12e9
"""Bytes from pinned memory to the device, a second: PCIe 3.0 with 16 lanes, of whose 15.75e9 that much arrives."""
PAGEABLE_SHARE = 0.4
"""What of that pageable memory reaches, which drivers copy into pinned memory first: scripts/bench/streaming.py."""
DISK_RATE = 2e9
"""Bytes that are read from a disk a second: what is left of a solid-state drive's 3e9 of PCIe 3.0 with 4 lanes."""
CONVERTED_RATE = 2e9
"""Bytes of weights that become another type as they are read from disk, a second: ``native/sdcpp/disk``."""
OPERATION_SECONDS = 2e-6
"""What each operation takes a GPU to begin; native/sdcpp/streaming/cost.cpp."""
CUDA_BASE_BYTES = 288 << 20
"""What CUDA takes besides a compute buffer: native/sdcpp/streaming/compute_use.cpp."""


@dataclass(frozen=True)
class Accelerator:
    """A GPU as the planner sees it.

    Attributes:
        name: of the device.
        bytes: memory that a model may use: what is free and what it holds itself.
        reserve: the part of it that stays free unless nothing else works.
        pins: whether it has a host buffer type.
        bus_rate: bytes a second from pinned memory.
        flops: operations a second.
        memory_rate: bytes a second of its own memory.
        base_bytes: what computing takes besides what graphs were laid out to take.
    """

    name: str
    bytes: int
    reserve: int
    pins: bool = True
    bus_rate: float = BUS_RATE
    flops: float = GPU_FLOPS
    memory_rate: float = GPU_MEMORY_RATE
    base_bytes: int = 0


@dataclass(frozen=True)
class Machine:
    """What there is to plan with.

    Attributes:
        gpus: the accelerators, the best one first.
        cpu: name of the CPU device.
        host_bytes: host memory that weights may take.
        pin_bytes: the part of it that may be pinned.
        cpu_flops: operations a second of all its cores.
        cpu_memory_rate: bytes a second that it reads and writes.
        disk_rate: bytes a second that the disk with the model's files gives; None where it was not measured, since host
            memory holds the model.
        assumed: what it was described as; empty for this machine.
    """

    gpus: tuple[Accelerator, ...]
    cpu: str
    host_bytes: int
    pin_bytes: int
    cpu_flops: float
    cpu_memory_rate: float = CPU_MEMORY_RATE
    disk_rate: float | None = None
    assumed: str = ""

    def __str__(self) -> str:
        """Return a line."""
        gpus = [
            f"{gpu.name} {show_bytes(gpu.bytes)} ({show_bytes(gpu.reserve)} of it in reserve), {gpu.flops / 1e12:.3g} "
            f"TFLOPS, {gpu.bus_rate / 1e9:.3g} GB/s"
            for gpu in self.gpus
        ]
        what = "assumed machine" if self.assumed else "machine"
        parts = [*gpus, f"{self.cpu} {show_bytes(self.host_bytes)} for weights, {self.cpu_flops / 1e12:.3g} TFLOPS"]
        parts += [f"disk {self.disk_rate / 1e9:.3g} GB/s"] if self.disk_rate is not None else []
        return f"{what}: {'; '.join(parts)}"

    def holds(self, weights: int) -> bool:
        """Tell whether host memory holds so many bytes of weights, pinned, so that none has to be on disk."""
        return weights <= min(self.host_bytes, self.pin_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)


_slower: dict[
    str, float
] = {}  # device -> how many times as long as by the stated figures pictures took in this process
_MOST_OFF = 8.0


def note_speed(device: str, predicted: float, happened: float) -> None:
    """Note what computing took a device, next to what the rates of :func:`this_machine` said.

    Of one picture that may be chance, so half of it counts, and eightfold is the most in all.
    """
    if predicted > 0 and happened > 0:
        slower = _slower.get(device, 1.0) * (happened / predicted) ** 0.5
        _slower[device] = min(max(slower, 1.0 / _MOST_OFF), _MOST_OFF)


def host_bytes(budget: PinBudget) -> int:
    """Return what host memory leaves for weights, pinned or not."""
    left = [part.bytes for part in budget.parts if part.name in _HOST_PARTS and part.bytes is not None]
    return min(left, default=0)


_HOST_PARTS = ("MemAvailable", "free memory", "cgroup", "RLIMIT_DATA")


def this_machine(
    devices: Sequence[Device], budget: PinBudget, threads: int | None, usable: Mapping[str, int] | None = None
) -> Machine:
    """Return this machine as it is now.

    Args:
        devices: the devices there are.
        budget: what may be pinned.
        threads: that compute on the CPU; None for all cores.
        usable: device -> bytes that a loaded model may use of it with its reserve, where that is not what is free.
    """
    usable = usable or {}
    cpu = next((device.name for device in devices if device.kind == "cpu"), "CPU")
    gpus = [
        Accelerator(
            name=device.name,
            bytes=usable.get(device.name, device.memory_free),
            reserve=device.memory_reserve,
            pins=device.host_buffer_type is not None,
            flops=GPU_FLOPS / _slower.get(device.name, 1.0),
            memory_rate=GPU_MEMORY_RATE / _slower.get(device.name, 1.0),
        )
        for device in _best_first(devices)
    ]
    slower = _slower.get(cpu, 1.0)
    return Machine(
        gpus=tuple(gpus),
        cpu=cpu,
        host_bytes=host_bytes(budget),
        pin_bytes=budget.bytes,
        cpu_flops=CPU_FLOPS * (threads or os.cpu_count() or 1) / slower,
        cpu_memory_rate=CPU_MEMORY_RATE / slower,
    )


def _best_first(devices: Sequence[Device]) -> Iterable[Device]:
    """Return the GPUs, that one first which the engine would take by itself."""
    gpus = [device for device in devices if device.kind == "gpu" and device.problem is None]
    return gpus or [device for device in devices if device.kind == "igpu" and device.problem is None]


@dataclass(frozen=True)
class Described:
    """A machine that is only described, in the units of ``assume``.

    Attributes:
        gpus: bytes of memory of each GPU.
        ram: bytes of host memory; None for what this machine has free.
        bus: bytes a second from pinned memory to a GPU.
        compute: operations a second of a GPU.
        disk: bytes a second from the disk with the model's files.
        text: as it was written.
    """

    gpus: tuple[int, ...] = ()
    ram: int | None = None
    bus: float = BUS_RATE
    compute: float = GPU_FLOPS
    disk: float = DISK_RATE
    text: str = field(default="", compare=False)

    def machine(self, budget: PinBudget, threads: int | None) -> Machine:
        """Return it as the planner sees it; what it does not say is as on this machine.

        A tenth of a GPU's memory, 1 GiB at most, is kept free, and a tenth of the host's, 1 GiB at least.
        """
        gib = 1 << 30
        gpus = tuple(
            Accelerator(
                f"GPU{index}",
                size,
                min(size // 10, gib),
                bus_rate=self.bus,
                flops=self.compute,
                memory_rate=GPU_MEMORY_RATE * self.compute / GPU_FLOPS,
                base_bytes=CUDA_BASE_BYTES,
            )
            for index, size in enumerate(self.gpus)
        )
        host = host_bytes(budget) if self.ram is None else max(0, self.ram - max(gib, self.ram // 10))
        cores = threads or os.cpu_count() or 1
        return Machine(gpus, "CPU", host, host, CPU_FLOPS * cores, disk_rate=self.disk, assumed=self.text)
