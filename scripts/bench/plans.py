#!/usr/bin/env python3
"""Compare the plans that are chosen for simulated machines with the best there are, for five models of full size.

    scripts/bench/plans.py [--quick] [--json FILE] [--family NAME ...]

For each model and machine (2 to 80 GiB on the device, 8 to 128 GiB in the host, a slow, a usual and a fast bus) every
way of placing the model is tried: how long a step of the denoiser takes is measured on the loopback accelerator's
virtual clock, within the budget that the plan leaves it and with the machine's bus; what text encoders and the VAE take
besides is the planner's own model. Printed are the chosen plan, its predicted seconds, what it takes by the clock, and
that over the best one. Ways that could not be faster than the best so far if copies cost nothing are not measured.

Needs a build with SDCPP_TEST_BACKEND=ON (scripts/test makes one).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sdcpp_py
from sdcpp_py.placement.assume import parse_assume
from sdcpp_py.placement.choice import Alternative, alternatives, choose, recopied_seconds, show_duration
from sdcpp_py.placement.demand import GROUPS, Demand
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
QUICK = ("SD 1.5", "Z-Image"), (2, 8, 24), (16, 64), (3, 12)
STEPS = 20
THREADS = 8


@dataclass(frozen=True)
class Cell:
    """What one machine gave; seconds are those of a picture."""

    model: str
    device: int  # GiB
    host: int  # GiB
    bus: float  # GB/s
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
        self.probe = Probe(loopback, lib, ffi, path, model, "overlapped", True)
        self.known: dict[tuple[int, float], float | str] = {}

    def step(self, budget: int, bus: float) -> float | str:
        """Return the seconds of a step within a budget in bytes, with a bus in bytes a second, or why there is none."""
        key = (budget, bus)
        if key not in self.known:
            self.loopback.set(pinned_bandwidth=bus)
            try:
                self.probe.begin(budget)
                self.probe.step(2, self.demand.passes)
                self.known[key] = self.probe.step(1, self.demand.passes)
            except RuntimeError as error:
                self.known[key] = str(error)
        return self.known[key]

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
        resident = sum(
            self.demand.group_bytes(group)
            for group in GROUPS
            if group in each.places and each.places[group].device == gpu.name and each.places[group].home == "device"
        )
        budget = gpu.bytes - (0 if each.tight else gpu.reserve) - resident - gpu.base_bytes
        step = self.step(budget, gpu.bus_rate * (0.4 if each.pageable else 1.0))
        return step if isinstance(step, str) else others + STEPS * step + recopied_seconds(machine, self.demand, each)

    def close(self) -> None:
        """Free it."""
        self.probe.close()


def cells(name: str, clock: Clock, demand: Demand, grid: tuple[tuple[int, ...], ...]) -> Iterator[Cell]:
    """Yield what each machine gives."""
    for device in grid[0]:
        for host in grid[1]:
            for bus in grid[2]:
                described: Described = parse_assume(f"gpu={device}GiB,ram={host}GiB,bus={bus}GB/s")
                machine = described.machine(sdcpp_py.PinBudget(()), THREADS)
                yield cell(name, clock, machine, demand, (device, host, bus))


def cell(name: str, clock: Clock, machine: Machine, demand: Demand, of: tuple[int, int, int]) -> Cell:
    """Return what one machine gives."""
    choice = choose(machine, demand)
    every = [each for each in alternatives(machine, demand) if each.fits]
    if choice is None:
        assert not every
        return Cell(name, *of, "-", None, None, None, "-", 0, "")
    mine = clock.seconds(machine, choice.chosen)
    best, best_plan, tried = (mine, choice.chosen, 1) if isinstance(mine, float) else (float("inf"), choice.chosen, 1)
    for each in sorted(every, key=lambda one: one.seconds or 0.0):
        others = (each.seconds or 0.0) - each.phases["sampling"]
        on_gpu = each.places["diffusion"].device != machine.cpu
        if others + (STEPS * clock.resident if on_gpu else each.phases["sampling"]) >= best:
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
    header = ("model", "device", "host", "bus", "plan", "predicted", "by the clock", "over the best", "tried")
    rows = [
        (
            each.model,
            f"{each.device} GiB",
            f"{each.host} GiB",
            f"{each.bus:g} GB/s",
            each.plan if not each.failed else f"{each.plan}: {each.failed}",
            "-" if each.predicted is None else show_duration(each.predicted),
            "-" if each.seconds is None else show_duration(each.seconds),
            "-" if each.ratio is None else f"{each.ratio:.3f}",
            str(each.tried),
        )
        for each in found
    ]
    return table(header, rows, (*header[1:4], *header[5:]))


def summary(found: list[Cell]) -> str:
    """Return what the table shows, in a few lines."""
    some = [each for each in found if each.ratio is not None]
    near = sum((each.ratio or 9.0) <= 1.05 for each in some)
    off = [abs((each.predicted or 0.0) / each.seconds - 1.0) for each in some if each.seconds]
    worst = max(some, key=lambda each: each.ratio or 0.0)
    nothing = sum(each.predicted is None for each in found)
    failed = sum(bool(each.failed) for each in found)
    return (
        f"within 1.05 of the best: {near} of {len(some)} machines, worst {worst.ratio:.3f} ({worst.model}, "
        f"{worst.device} GiB, {worst.host} GiB, {worst.bus:g} GB/s: {worst.best_plan} would be faster)\n"
        f"predicted seconds are off by {sorted(off)[len(off) // 2]:.1%} in the middle, {max(off):.1%} at most\n"
        f"chosen plans that do not compute: {failed}; machines that no plan serves: {nothing}"
    )


def main() -> int:
    """Run the grid."""
    options = grid_parser(__doc__, "a minute").parse_args()
    models, *grid = QUICK if options.quick else (tuple(MODELS), DEVICES, HOSTS, BUSES)
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
