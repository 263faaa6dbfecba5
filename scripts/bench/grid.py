"""What the benchmarks share that try a grid of settings on the virtual clock, for models of full size."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support.denoiser_probe import MODELS
from support.loopback import Loopback


def grid_parser(description: str | None, minutes: str) -> argparse.ArgumentParser:
    """Return the command line of a grid over the models.

    Args:
        description: the script's documentation.
        minutes: what its small grid takes.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"a small grid, for under {minutes}")
    parser.add_argument("--family", nargs="+", choices=list(MODELS), help="only these models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the cells there")
    return parser


def dry_loopback() -> Loopback:
    """Return the loopback accelerator, as a device of any size that computes nothing and checks the order alone."""
    return Loopback(dry=1, poison=0, check_uninitialised=0, check_sources=0, defer_downloads=0, memory_total=1 << 42)
