#!/usr/bin/env python3
"""Measure streamed steps on the loopback accelerator's virtual clock, for models of full size without their weights.

    scripts/bench/streaming.py [--quick] [--json FILE] [--plot FILE.png] [--family NAME ...]

For each model, share of the weights that the budget of device memory can hold, and ratio between copying and computing,
a denoiser is computed a few times. Printed are the step's time against the bound, which is the longer one of computing
and of copying what cannot be resident; against the limit, which no schedule can beat (see ``limit``); against the same
budget with copies and computations alternating ("in turn", max_vram without stream_layers); against the engine's own
segments, which are copied and computed in turn and never stay ("engine"); and against weights in pageable memory, "-"
where the host has too little of it. The peak of device memory is the accelerator's own count.

The ratio is that of the bound's two sides: at 1 the copies take as long as the computations, at 4 the bus is the limit.
A budget is the compute buffer and a share of the weights. Needs a build with SDCPP_TEST_BACKEND=ON (scripts/test makes
one), and matplotlib for --plot.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from sdcpp_py.reports import show_bytes, table

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from grid import dry_loopback, grid_parser
from support.denoiser_probe import GIB, MODELS, Probe, header_only, probe_library
from support.loopback import Loopback

PAGEABLE = 0.4  # speed of copies from pageable memory, as share of the speed of those from pinned memory


BUDGETS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
QUICK = ("SD 1.5", "Z-Image"), (0.1, 0.5, 0.9), (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Cell:
    """What one budget and ratio gave; seconds are virtual ones of a step."""

    model: str
    budget: float  # share of the weights
    ratio: float  # copying what cannot be resident : computing
    seconds: float
    bound: float
    first_seconds: float  # of the step that also loads the resident weights
    first_limit: float  # below which it cannot be, see first_limit()
    in_turn: float
    engine: float
    pageable: float | None
    limit: float
    budget_bytes: int
    peak_bytes: int
    streamed_bytes: int
    slots: int
    slot_bytes: int
    allocations: int  # of device memory, between the second step and the last

    @property
    def ratio_to_bound(self) -> float:
        """1 is perfect."""
        return self.seconds / self.bound

    @property
    def ratio_to_limit(self) -> float:
        """1 is the best that can be had."""
        return self.seconds / self.limit

    @property
    def peak_over_budget(self) -> float:
        """More than 1 is a broken promise."""
        return self.peak_bytes / self.budget_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the ratios."""
        ratios = ("ratio_to_bound", "ratio_to_limit", "peak_over_budget")
        return {**asdict(self), **{name: getattr(self, name) for name in ratios}}


def limit(sizes: Any, seconds: Any, values: Any, memory: float, rate: float) -> float:
    """Return a time below which no schedule computes a graph again and again.

    A linear program, relaxed where a schedule has no choice (any part of a segment may stay, memory has no gaps, and
    what of the compute buffer holds nothing may hold weights): for each segment the part of its weights that is
    streamed, the time between its start and the next one's, and the bytes that arrive meanwhile. What a segment needs
    is there when it starts and stays until it ends.

    Args:
        sizes: bytes of each segment's weights, in the order of computing.
        seconds: each segment's computing.
        values: bytes that the compute buffer holds meanwhile, at least and at most.
        memory: bytes for all weights on the device and for what the compute buffer holds.
        rate: bytes that are copied in a second.
    """
    count, whole = len(sizes), sizes.sum()
    share, unit = sizes / whole, seconds.sum()
    one, none = sparse.identity(count), sparse.csr_matrix((count, count))
    streamed, column = sparse.diags(share), sparse.csr_matrix(np.full((count, 1), -1.0))
    nothing = sparse.csr_matrix((count, 1))
    # Unknowns: the part streamed, the time, the bytes that arrive, the bytes there at the start; the room for them.
    upper = sparse.vstack(
        [
            sparse.hstack([none, -rate * unit / whole * one, one, none, nothing]),
            sparse.hstack([streamed, none, none, -one, nothing]),
            sparse.hstack([none, none, one, one, column]),
            sparse.hstack([none, none, none, one, column]),
            sparse.hstack([sparse.csr_matrix(-share), sparse.csr_matrix((1, 3 * count)), sparse.csr_matrix([[1.0]])]),
        ]
    )
    following = sparse.csr_matrix(np.roll(np.eye(count), 1, axis=1))
    solved = linprog(
        np.concatenate([np.zeros(count), np.ones(count), np.zeros(2 * count + 1)]),
        A_ub=upper.tocsr(),
        b_ub=np.concatenate([np.zeros(2 * count), -values[0] / whole, -values[1] / whole, [memory / whole - 1]]),
        A_eq=sparse.hstack([streamed, none, -one, following - one, nothing]).tocsr(),
        b_eq=np.zeros(count),
        bounds=[(0, 1)] * count + [(x, None) for x in seconds / unit] + [(0, None)] * (2 * count + 1),
    )
    return float(solved.fun) * unit


def first_limit(sizes: Any, seconds: Any, fixed: float, rate: float) -> float:
    """Return a time below which no schedule computes a graph for the first time, with nothing on the device yet.

    A segment starts when all weights up to its own have been copied, and all computing from it on is still to come.

    Args:
        sizes: bytes of each segment's weights, in the order of computing.
        seconds: each segment's computing.
        fixed: bytes of weights that are there before the first segment.
        rate: bytes that are copied in a second.
    """
    arrived = (fixed + np.cumsum(sizes)) / rate
    to_come = np.cumsum(seconds[::-1])[::-1]
    return float((arrived + to_come).max())


class Bench:
    """One model in every way of keeping its weights."""

    def __init__(self, loopback: Loopback, name: str, path: Path) -> None:
        self.loopback, self.name, self.model = loopback, name, MODELS[name]
        self.ffi, self.lib = probe_library()
        self.now = self.ffi.callback("double(void)", lambda: loopback.clock()["host_seconds"])
        self.lib.sdcpp_probe_clock(self.now)

        def probe(mode: str, *, pin: bool = True) -> Probe:
            made = Probe(loopback, self.lib, self.ffi, path, self.model, mode, pin)
            made.begin(1 << 42)
            made.step()
            if mode == "overlapped" and pin:
                self.row, self.segments = made.stream(), made.segments()
            made.begin(1 << 42)  # holds nothing now
            return made

        device = probe("device")
        self.compute = device.step()
        device.close()
        self.streamed, self.in_turn = probe("overlapped"), probe("in turn")
        self.engine = probe("engine")
        try:
            self.pageable = probe("overlapped", pin=False)
        except RuntimeError:  # a host buffer takes no memory here, plain memory does
            self.pageable = None
        self.compute_bytes, self.weight_bytes = self.row["compute_bytes"], self.row["weight_bytes"]

    def cell(self, budget: float, ratio: float) -> Cell:
        """Measure one cell."""
        budget_bytes = round(float(np.float32((self.compute_bytes + budget * self.weight_bytes) / GIB)) * GIB)
        must = self.weight_bytes - (budget_bytes - self.compute_bytes)
        copied = must if budget < 1 else self.weight_bytes
        rate = copied / (ratio * self.compute)
        self.loopback.set(pinned_bandwidth=rate, pageable_bandwidth=PAGEABLE * rate)
        self.streamed.begin(budget_bytes)
        first = self.streamed.step()
        self.streamed.step()  # in which the stalls are measured
        allocations = self.loopback.books()["device_allocs"]
        seconds = self.streamed.step(2)
        books, row = self.loopback.books(), self.streamed.stream()
        self.streamed.begin(budget_bytes)
        others: list[float | None] = []
        for probe in (self.in_turn, self.engine, self.pageable):
            if probe is None:
                others.append(None)
                continue
            probe.begin(budget_bytes)
            probe.step(2)
            others.append(probe.step())
            probe.begin(budget_bytes)  # releases
        sizes, costs, values = self.segments
        fixed = self.weight_bytes - sizes.sum()
        return Cell(
            model=self.name,
            budget=budget,
            ratio=ratio,
            seconds=seconds,
            bound=max(self.compute, max(must, 0) / rate),
            first_seconds=first,
            first_limit=first_limit(sizes, costs * self.compute, fixed, rate),
            in_turn=others[0],
            engine=others[1],
            pageable=others[2],
            limit=limit(sizes, costs * self.compute, values, budget_bytes - fixed, rate),
            budget_bytes=budget_bytes,
            peak_bytes=books["device_bytes_peak"],
            streamed_bytes=row["streamed_bytes"],
            slots=row["slots"],
            slot_bytes=row["slot_bytes"],
            allocations=books["device_allocs"] - allocations,
        )

    def close(self) -> None:
        """Free all."""
        for probe in (self.streamed, self.in_turn, self.engine, self.pageable):
            if probe is not None:
                probe.close()
        self.lib.sdcpp_probe_clock(self.ffi.NULL)


def show(cells: list[Cell]) -> str:
    """Return the table."""
    header = ("model", "budget", "copy:compute", "step", "bound", "step/bound", "step/limit", "first/limit",
              "in turn/step", "engine/step", "pageable/step", "peak/budget", "slots")  # fmt: skip
    rows = [
        (
            cell.model,
            f"{cell.budget:.0%}",
            f"{cell.ratio:g}",
            f"{1e3 * cell.seconds:.1f} ms",
            f"{1e3 * cell.bound:.1f} ms",
            f"{cell.ratio_to_bound:.3f}",
            f"{cell.ratio_to_limit:.3f}",
            f"{cell.first_seconds / cell.first_limit:.3f}",
            f"{cell.in_turn / cell.seconds:.2f}",
            f"{cell.engine / cell.seconds:.2f}",
            "-" if cell.pageable is None else f"{cell.pageable / cell.seconds:.2f}",
            f"{cell.peak_over_budget:.4f}",
            f"{cell.slots} in {show_bytes(cell.slot_bytes)}",
        )
        for cell in cells
    ]
    return table(header, rows, header[1:])


def summary(cells: list[Cell]) -> str:
    """Return what the grid shows, in a few lines."""
    within = [cell for cell in cells if cell.ratio_to_bound <= 1.05]
    beyond = [cell for cell in cells if cell.ratio_to_bound > 1.05]
    forced = [cell for cell in beyond if cell.limit / cell.bound > 1.05]
    balanced = [cell.in_turn / cell.seconds for cell in cells if cell.budget < 1 and cell.ratio == 1]
    return (
        f"step/bound <= 1.05 in {len(within)} of {len(cells)} cells; of the others no schedule can reach it in "
        f"{len(forced)}\nworst step/bound {max(cell.ratio_to_bound for cell in cells):.3f}, step/limit "
        f"{max(cell.ratio_to_limit for cell in cells):.3f}, peak/budget "
        f"{max(cell.peak_over_budget for cell in cells):.4f}\nin turn/step where copying and computing are balanced: "
        f"{min(balanced):.2f} to {max(balanced):.2f}\nallocations of device memory after the second step: "
        f"{sum(cell.allocations for cell in cells)}"
    )


def plot(cells: list[Cell], path: Path) -> None:
    """Draw the step's time over its bound for each model."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(cell.model for cell in cells))
    figure = Figure(figsize=(3.2 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        mine = [cell for cell in cells if cell.model == name and cell.budget < 1]
        for ratio in sorted({cell.ratio for cell in mine}):
            line = [cell for cell in mine if cell.ratio == ratio]
            budgets = [100 * cell.budget for cell in line]
            color = axes.plot(budgets, [cell.ratio_to_bound for cell in line], "o-", label=f"copy:compute {ratio:g}")
            axes.plot(budgets, [cell.in_turn / cell.bound for cell in line], ":", color=color[0].get_color())
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(title=name, xlabel="budget, % of the weights", ylim=(0.95, 2.1))
    figure.axes[0].set_ylabel("step / bound (dotted: copies and computations in turn)")
    figure.axes[-1].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run the grid."""
    parser = grid_parser(__doc__, "half a minute")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them there")
    options = parser.parse_args()
    models, budgets, ratios = QUICK if options.quick else (tuple(MODELS), BUDGETS, RATIOS)
    loopback = dry_loopback()
    cells = []
    for name in options.family or models:
        with header_only(MODELS[name]) as path:
            bench = Bench(loopback, name, path)
            for budget in budgets:
                for ratio in ratios if budget < 1 else (1.0,):
                    cells.append(bench.cell(budget, ratio))
            bench.close()
        print(show([cell for cell in cells if cell.model == name]), flush=True)
    print(summary(cells))
    if options.json:
        options.json.write_text(json.dumps({"cells": [cell.to_dict() for cell in cells]}, indent=1) + "\n")
    if options.plot:
        plot(cells, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
