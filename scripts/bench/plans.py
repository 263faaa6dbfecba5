#!/usr/bin/env python3
"""Compare the plans that are chosen for simulated machines with the best there are, for five models of full size.

    scripts/bench/plans.py [--quick] [--json FILE] [--family NAME ...]

For each model and machine (2 to 80 GiB on the device, 8 to 128 GiB in the host, a slow, a usual and a fast bus, and
where the host does not hold the model a slow, a usual and a fast disk) every way of placing the model is tried: how
long a step of the denoiser takes is measured on the loopback accelerator's virtual clock, within the budget that the
plan leaves it and with the machine's bus and disk; what text encoders and the VAE take besides is the planner's own
model. Printed are the chosen plan, its predicted seconds, what it takes by the clock, and that over the best one. Ways
that could not be faster than the best so far if copies cost nothing are not measured.

Needs a build with SDCPP_TEST_BACKEND=ON (scripts/test makes one).
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sdcpp_py
from sdcpp_py.placement.alternative import Alternative
from sdcpp_py.placement.assume import parse_assume
from sdcpp_py.placement.choice import alternatives, choose, show_duration
from sdcpp_py.placement.demand import GROUPS, Demand
from sdcpp_py.placement.evaluation import recopied_seconds
from sdcpp_py.placement.machine import Described, Machine
from sdcpp_py.planning import Planner, Surveyor
from sdcpp_py.reports import table

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from grid import dry_loopback, grid_parser
from support.denoiser_probe import GIB, MODELS, Model, Probe, header_only, probe_library
from support.loopback import Loopback

DEVICES = (2, 4, 6, 8, 12, 16, 24, 48, 80)
HOSTS = (8, 16, 32, 64, 128)
BUSES = (3, 12, 50)
DISKS = (0.5, 2, 7)
QUICK = ("SD 1.5", "Z-Image"), (2, 8, 24), (16, 64), (3, 12), (2,)
STEPS = 20
THREADS = 8


@dataclass(frozen=True)
class Cell:
    """What one machine gave; seconds are those of a picture."""

    model: str
    device: int  # GiB
    host: int  # GiB
    bus: float  # GB/s
    disk: float | None  # GB/s; None: host memory holds the model
    plan: str
    predicted: float | None  # None: nothing fits
    seconds: float | None  # of the plan, by the clock
    best: float | None  # of all, by the clock
    best_plan: str
    tried: int
    failed: str  # why the chosen plan did not compute; empty where it did

    @property
    def ratio(self) -> float | None:
        """1 is the best there is."""
        return None if self.seconds is None or self.best is None else self.seconds / self.best


def name_of(each: Alternative) -> str:
    """Return a plan in a few words."""
    tiles = f", tiles {each.tile}" if each.tile else ""
    return ", ".join(f"{group} {place}" for group, place in each.places.items()) + tiles


class Clock:
    """One model's denoiser on the virtual clock, streamed within budgets, each measured once."""

    def __init__(self, loopback: Loopback, model: Model, path: Path, demand: Demand) -> None:
        self.loopback, self.demand = loopback, demand
        ffi, lib = probe_library()
        self.now = ffi.callback("double(void)", lambda: loopback.clock()["host_seconds"])
        lib.sdcpp_probe_clock(self.now)
        device = Probe(loopback, lib, ffi, path, model, "device", True)
        device.begin(1 << 42)
        device.step(1, demand.passes)
        self.resident = device.step(1, demand.passes)
        device.close()
        self.wait = ffi.callback("void(double)", self._wait_until)
        self.stream = loopback.ffi.new("loopback_stream*")
        self.stream_end = ffi.callback("double(void*)", self._stream_end)
        self.made = lambda mode, keep: Probe(loopback, lib, ffi, path, model, mode, True, keep)
        self.set_disk = lambda rate: lib.sdcpp_probe_disk(rate, self.wait, self.stream_end)
        self.probe = self.made("overlapped", 0)
        self.disk: tuple[int, Probe] | None = None  # what host memory keeps of it
        self.known: dict[Any, float | str] = {}

    def _wait_until(self, end: float) -> None:
        self.loopback.lib.loopback_host_advance(max(0.0, end - self.loopback.clock()["host_seconds"]))

    def _stream_end(self, backend: Any) -> float:
        assert self.loopback.lib.loopback_stream_get(self.loopback.ffi.cast("void*", backend), self.stream) == 0
        return float(self.stream.seconds)

    def _probe(self, disk: tuple[int, float] | None) -> Probe:
        """Return what streams from host memory, or from a disk at a rate, of which host memory keeps some bytes."""
        if disk is None:
            return self.probe
        keep, rate = disk
        self.set_disk(rate)
        if self.disk is None or self.disk[0] != keep:
            if self.disk is not None:
                self.disk[1].close()
            self.disk = (keep, self.made("disk", keep))
        return self.disk[1]

    def step(self, budget: int, bus: float, disk: tuple[int, float] | None = None) -> float | str:
        """Return the seconds of a step, or why there is none.

        Args:
            budget: of device memory, in bytes.
            bus: bytes a second.
            disk: for weights on disk, how many bytes of them host memory keeps, and the bytes a second of the others.
        """
        key = (budget, bus, disk)
        if key not in self.known:
            self.loopback.set(pinned_bandwidth=bus)
            probe = self._probe(disk)
            try:
                probe.begin(budget)
                probe.step(2, self.demand.passes)
                self.known[key] = probe.step(1, self.demand.passes)
            except RuntimeError as error:
                self.known[key] = str(error)
        return self.known[key]

    def least(self, machine: Machine, each: Alternative) -> float:
        """Return seconds of a picture below which no schedule comes."""
        others = (each.seconds or 0.0) - each.phases["sampling"]
        place = each.places["diffusion"]
        if place.device == machine.cpu:
            return each.seconds or 0.0
        copying = 0.0
        if place.home != "device":
            (gpu,) = machine.gpus
            (network,) = self.demand.of_group("diffusion")
            room = self._budget(machine, each) - network.compute_bytes
            copying = (network.weight_bytes - room) / gpu.bus_rate
        if place.home == "disk":
            copying = max(copying, (network.weight_bytes - room - each.kept_bytes) / (machine.disk_rate or 1.0))
        return others + STEPS * max(self.resident, copying)

    def _budget(self, machine: Machine, each: Alternative) -> int:
        """Return what the denoiser may use of the device, in bytes."""
        (gpu,) = machine.gpus
        resident = sum(
            self.demand.group_bytes(group)
            for group in GROUPS
            if group in each.places and each.places[group].device == gpu.name and each.places[group].home == "device"
        )
        return gpu.bytes - (0 if each.tight else gpu.reserve) - resident - gpu.base_bytes

    def seconds(self, machine: Machine, each: Alternative) -> float | str:
        """Return the seconds of a picture, or why it cannot be drawn; where the denoiser streams by the clock."""
        place = each.places["diffusion"]
        whole = each.seconds or 0.0
        if place.device == machine.cpu:
            return whole
        others = whole - each.phases["sampling"]
        if place.home == "device":
            return others + STEPS * self.resident
        (gpu,) = machine.gpus
        budget = self._budget(machine, each)
        if place.home == "disk":
            stored = self.demand.stored["diffusion"]
            assert stored.converted_bytes < 0.01 * stored.disk_bytes
            keep = min(each.kept_bytes, stored.disk_bytes)
            step = self.step(budget, gpu.bus_rate, (keep, machine.disk_rate or 1.0))
        else:
            step = self.step(budget, gpu.bus_rate * (0.4 if each.pageable else 1.0))
        return step if isinstance(step, str) else others + STEPS * step + recopied_seconds(machine, self.demand, each)

    def close(self) -> None:
        """Free it."""
        self.probe.close()
        if self.disk is not None:
            self.disk[1].close()


def cells(name: str, clock: Clock, demand: Demand, grid: tuple[tuple[float, ...], ...]) -> Iterator[Cell]:
    """Yield what each machine gives."""
    for device in grid[0]:
        for host in grid[1]:
            for bus, disk in itertools.product(*grid[2:]):
                described: Described = parse_assume(f"gpu={device}GiB,ram={host}GiB,bus={bus}GB/s,disk={disk}GB/s")
                machine = described.machine(sdcpp_py.PinBudget(()), THREADS)
                holds = machine.holds(sum(demand.weights.values()))
                if not holds or disk == grid[3][0]:
                    yield cell(name, clock, machine, demand, (device, host, bus, None if holds else disk))


def cell(name: str, clock: Clock, machine: Machine, demand: Demand, of: tuple[Any, ...]) -> Cell:
    """Return what one machine gives."""
    choice = choose(machine, demand)
    every = [each for each in alternatives(machine, demand) if each.fits]
    if choice is None:
        assert not every
        return Cell(name, *of, "-", None, None, None, "-", 0, "")
    mine = clock.seconds(machine, choice.chosen)
    best, best_plan, tried = (mine, choice.chosen, 1) if isinstance(mine, float) else (float("inf"), choice.chosen, 1)
    for each in sorted(every, key=lambda one: one.seconds or 0.0):
        if clock.least(machine, each) >= best:
            continue
        seconds = clock.seconds(machine, each)
        tried += 1
        if isinstance(seconds, float) and seconds < best:
            best, best_plan = seconds, each
    failed = mine if isinstance(mine, str) else ""
    took = mine if isinstance(mine, float) else None
    known = best if best < float("inf") else None
    return Cell(name, *of, name_of(choice.chosen), choice.seconds, took, known, name_of(best_plan), tried, failed)


def demand_of(model: Model, path: Path) -> Demand:
    """Return what a guided picture of a model takes, by a survey of its graphs."""
    from sdcpp_py.modes import TXT2IMG, Abilities, make_request

    given = {"model_path": bytes(path), "diffusion_flash_attn": True}
    planner = Planner(Surveyor(given, {}), THREADS, parse_assume("gpu=2GiB"))
    machine, _, _ = planner.machine()
    asked: dict[str, Any] = {"prompt": "a picture", "width": model.width, "height": model.height, "steps": STEPS}
    request = make_request(TXT2IMG, asked, {}, Abilities())
    return planner.demand(TXT2IMG, request, machine, encodes=False)


def show(found: list[Cell]) -> str:
    """Return the table."""
    header = ("model", "device", "host", "bus", "disk", "plan", "predicted", "by the clock", "over the best", "tried")
    rows = [
        (
            each.model,
            f"{each.device} GiB",
            f"{each.host} GiB",
            f"{each.bus:g} GB/s",
            "-" if each.disk is None else f"{each.disk:g} GB/s",
            each.plan if not each.failed else f"{each.plan}: {each.failed}",
            "-" if each.predicted is None else show_duration(each.predicted),
            "-" if each.seconds is None else show_duration(each.seconds),
            "-" if each.ratio is None else f"{each.ratio:.3f}",
            str(each.tried),
        )
        for each in found
    ]
    return table(header, rows, (*header[1:5], *header[6:]))


def summary(found: list[Cell]) -> str:
    """Return what the table shows, in a few lines."""
    some = [each for each in found if each.ratio is not None]
    near = sum((each.ratio or 9.0) <= 1.05 for each in some)
    off = [abs((each.predicted or 0.0) / each.seconds - 1.0) for each in some if each.seconds]
    worst = max(some, key=lambda each: each.ratio or 0.0)
    nothing = [each for each in found if each.predicted is None]
    from_disk = [each for each in some if "from disk" in each.plan]
    failed = sum(bool(each.failed) for each in found)
    return (
        f"within 1.05 of the best: {near} of {len(some)} machines, worst {worst.ratio:.3f} ({worst.model}, "
        f"{worst.device} GiB, {worst.host} GiB, {worst.bus:g} GB/s, disk {worst.disk} GB/s: {worst.best_plan} would be "
        "faster)\n"
        f"predicted seconds are off by {sorted(off)[len(off) // 2]:.1%} in the middle, {max(off):.1%} at most\n"
        f"chosen plans that do not compute: {failed}; machines that no plan serves: {len(nothing)}\n"
        f"plans with weights on disk: {len(from_disk)}, within 1.05 of the best: "
        f"{sum((each.ratio or 9.0) <= 1.05 for each in from_disk)}"
    )


def main() -> int:
    """Run the grid."""
    options = grid_parser(__doc__, "a minute").parse_args()
    models, *grid = QUICK if options.quick else (tuple(MODELS), DEVICES, HOSTS, BUSES, DISKS)
    loopback = dry_loopback()
    found: list[Cell] = []
    for name in options.family or models:
        with header_only(MODELS[name]) as path:
            demand = demand_of(MODELS[name], path)
            clock = Clock(loopback, MODELS[name], path, demand)
            mine = list(cells(name, clock, demand, tuple(grid)))
            clock.close()
        print(show(mine), flush=True)
        found += mine
    print(summary(found))
    if options.json:
        options.json.write_text(json.dumps({"cells": [asdict(each) for each in found], "gib": GIB}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
