#!/usr/bin/env python3
"""Measure steps whose passes are lanes on the loopback accelerator's virtual clock, for models of full size.

    scripts/bench/lanes.py [--quick] [--json FILE] [--family NAME ...]

As ``streaming.py``, whose bound and limit are recomputed: a guided step has two passes, a batch of four has four or,
with guidance, eight. Printed are how many of them the planner made lanes of one graph; what a step copied, over what
the step with one pass does; its time over the longer one of bound and limit, over that of one pass, and over that of
its passes one by one; and the peak of device memory by the accelerator's own count. The bound is the longer one of
computing and of copying what cannot be resident beside the lanes' compute buffer; of one lane and the chosen number the
one that takes less counts.

A budget is the compute buffer of one pass and a share of the weights; the ratio is of copying and computing for one
pass. Needs a build with SDCPP_TEST_BACKEND=ON (scripts/test makes one).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdcpp_py.reports import table

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from grid import dry_loopback, grid_parser
from streaming import BUDGETS, QUICK, RATIOS, limit
from support.denoiser_probe import GIB, MODELS, Probe, header_only, probe_library
from support.loopback import Loopback

PASSES = (2, 4, 8)


@dataclass(frozen=True)
class Cell:
    """What one budget, ratio and number of passes gave; seconds are virtual ones of a step."""

    model: str
    budget: float  # share of the weights
    ratio: float  # copying what cannot be resident : computing, for one pass
    passes: int
    lanes: int
    seconds: float
    one_pass: float  # the step with one pass
    copied: float  # bytes a step
    copied_by_one: float
    bound: float
    limit: float
    budget_bytes: int
    peak_bytes: int
    violations: int

    @property
    def ratio_to_best(self) -> float:
        """1 is the best that can be had."""
        return self.seconds / max(self.bound, self.limit)

    @property
    def peak_over_budget(self) -> float:
        """More than 1 is a broken promise."""
        return self.peak_bytes / self.budget_bytes


class Bench:
    """One model, streamed."""

    def __init__(self, loopback: Loopback, name: str, path: Path) -> None:
        self.loopback, self.name = loopback, name
        ffi, lib = probe_library()
        self.now = ffi.callback("double(void)", lambda: loopback.clock()["host_seconds"])
        lib.sdcpp_probe_clock(self.now)
        device = Probe(loopback, lib, ffi, path, MODELS[name], "device", True)
        device.begin(1 << 42)
        device.step()
        self.compute = device.step()
        device.close()
        self.probe = Probe(loopback, lib, ffi, path, MODELS[name], "overlapped", True)
        self.probe.begin(1 << 42)
        self.probe.step()
        row = self.probe.stream()
        self.compute_bytes, self.weight_bytes = row["compute_bytes"], row["weight_bytes"]

    def step(self, budget_bytes: int, rate: float, passes: int) -> tuple[dict[str, Any], float, float, float, float]:
        """Return the stream's row, and a step's seconds, bytes, bound and limit."""
        self.probe.begin(budget_bytes)
        self.probe.step(2, passes)
        seconds = self.probe.step(2, passes)
        row = self.probe.stream()
        copied = row["copied_bytes"] / 4
        sizes, costs, values = self.probe.segments()
        lanes = row["lanes"]
        graphs = -(-passes // lanes)
        must = max(self.weight_bytes + row["compute_bytes"] - budget_bytes, 0)
        bound = max(passes * self.compute, graphs * must / rate)
        room = budget_bytes - (self.weight_bytes - sizes.sum())
        lowest = graphs * limit(sizes, costs * self.compute * passes / graphs, values, room, rate)
        return row, seconds, copied, bound, lowest

    def cells(self, budget: float, ratio: float) -> list[Cell]:
        """Measure a budget and a ratio with each number of passes."""
        budget_bytes = round(float(np.float32((self.compute_bytes + budget * self.weight_bytes) / GIB)) * GIB)
        must = self.weight_bytes - (budget_bytes - self.compute_bytes)
        rate = (must if budget < 1 else self.weight_bytes) / (ratio * self.compute)
        self.loopback.set(pinned_bandwidth=rate)
        _, one_pass, copied_by_one, bound_of_one, limit_of_one = self.step(budget_bytes, rate, 1)
        cells = []
        for passes in PASSES:
            row, seconds, copied, bound, lowest = self.step(budget_bytes, rate, passes)
            books = self.loopback.books()
            best = min(max(bound, lowest), passes * max(bound_of_one, limit_of_one))
            cells.append(
                Cell(
                    model=self.name,
                    budget=budget,
                    ratio=ratio,
                    passes=passes,
                    lanes=row["lanes"],
                    seconds=seconds,
                    one_pass=one_pass,
                    copied=copied,
                    copied_by_one=copied_by_one,
                    bound=min(bound, best),
                    limit=min(lowest, best),
                    budget_bytes=budget_bytes,
                    peak_bytes=books["device_bytes_peak"],
                    violations=books["violations"],
                )
            )
        return cells


def show(cells: Sequence[Cell]) -> str:
    """Return the table."""
    header = ("model", "budget", "copy:compute", "passes", "lanes", "copied/one pass", "step/best", "step/one pass",
              "one by one/step", "peak/budget")  # fmt: skip
    rows = [
        (
            cell.model,
            f"{cell.budget:.0%}",
            f"{cell.ratio:g}",
            str(cell.passes),
            str(cell.lanes),
            f"{cell.copied / cell.copied_by_one:.3f}" if cell.copied_by_one else "-",
            f"{cell.ratio_to_best:.3f}",
            f"{cell.seconds / cell.one_pass:.3f}",
            f"{cell.passes * cell.one_pass / cell.seconds:.3f}",
            f"{cell.peak_over_budget:.4f}",
        )
        for cell in cells
    ]
    return table(header, rows, header[1:])


def summary(cells: Sequence[Cell]) -> str:
    """Return what the grid shows, in a few lines."""
    lines = []
    for passes in PASSES:
        some = [cell for cell in cells if cell.passes == passes]
        near = sum(cell.ratio_to_best <= 1.05 for cell in some)
        copied = [cell.copied / cell.copied_by_one for cell in some if cell.copied_by_one]
        lines.append(
            f"{passes} passes: step/best <= 1.05 in {near} of {len(some)} cells, worst "
            f"{max(cell.ratio_to_best for cell in some):.3f}; copied over one pass {min(copied):.2f} to "
            f"{max(copied):.2f}; slower than one by one at most "
            f"{max(cell.seconds / cell.passes / cell.one_pass for cell in some):.3f}"
        )
    worst = max(cell.peak_over_budget for cell in cells)
    return "\n".join([*lines, f"peak/budget at most {worst:.4f}; violations {sum(cell.violations for cell in cells)}"])


def main() -> int:
    """Run the grid."""
    options = grid_parser(__doc__, "a minute").parse_args()
    models, budgets, ratios = QUICK if options.quick else (tuple(MODELS), BUDGETS, RATIOS)
    loopback = dry_loopback()
    cells: list[Cell] = []
    for name in options.family or models:
        with header_only(MODELS[name]) as path:
            bench = Bench(loopback, name, path)
            mine = [
                cell
                for budget in budgets
                for ratio in (ratios if budget < 1 else (1.0,))
                for cell in bench.cells(budget, ratio)
            ]
            bench.probe.close()
        print(show(mine), flush=True)
        cells += mine
    print(summary(cells))
    if options.json:
        options.json.write_text(json.dumps({"cells": [asdict(cell) for cell in cells]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
