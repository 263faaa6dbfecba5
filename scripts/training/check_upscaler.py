#!/usr/bin/env python3
"""Compare the upscaler with the same network in torch, on random weights of the published sizes.

    scripts/training/check_upscaler.py [--blocks N] [--side PIXELS] [--rounds N] [--json FILE]

Each row is a layout that checkpoints come in: its factor, how many pixels it folds into one, and its names. The
reference is RRDBNet as tests/support/esrgan.py describes it, written with torch's own convolutions and
``pixel_unshuffle``, in f32; the engine has its weights in f16. Besides the whole picture, tiles of half a side are
compared with what torch makes of the whole one. Seconds are the least of several rounds, ours and torch's in turn with
as many threads: those of the CPU, which other programs change little, and those of the clock.

Run it with the Python that has sdcpp-py installed, and torch (pip install --group train). Exit status: 0 when every row
reaches 40 dB, 1 when one does not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch.nn import functional

import sdcpp_py

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support.esrgan import RESIDUAL, SLOPE, first_names, psnr, random_weights, trunk_names

LEAST = 40.0
ROWS = [(4, 1, "BasicSR"), (4, 1, "first"), (2, 1, "trunk"), (4, 2, "BasicSR"), (1, 1, "BasicSR")]
NAMES = {"BasicSR": dict, "first": first_names, "trunk": trunk_names}


def by_torch(weights: dict[str, Any], picture: Any, folds: int) -> Any:
    """Return what the network makes of a picture of shape (height, width, 3)."""
    held = {name: torch.from_numpy(weight.astype(np.float32)) for name, weight in weights.items()}

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, held[f"{name}.weight"], held[f"{name}.bias"], padding=1)

    def leaky(x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(x, SLOPE)

    with torch.inference_mode():
        x = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
        x = first = conv("conv_first", functional.pixel_unshuffle(x, folds))
        blocks = max(int(name.split(".")[1]) for name in weights if name.startswith("body.")) + 1
        for block in range(blocks):
            before = x
            for part in (1, 2, 3):
                seen = x
                for layer in (1, 2, 3, 4):
                    seen = torch.cat([seen, leaky(conv(f"body.{block}.rdb{part}.conv{layer}", seen))], 1)
                x = x + RESIDUAL * conv(f"body.{block}.rdb{part}.conv5", seen)
            x = before + RESIDUAL * x
        x = first + conv("conv_body", x)
        for name in ("conv_up1", "conv_up2"):
            if f"{name}.weight" in held:
                x = leaky(conv(name, functional.interpolate(x, scale_factor=2, mode="nearest")))
        x = conv("conv_last", leaky(conv("conv_hr", x)))
        return (x.clamp(0, 1)[0] * 255).round().byte().permute(1, 2, 0).numpy()


def photo(side: int) -> Any:
    """Return a picture with detail of several sizes."""
    random = np.random.default_rng(1)
    picture = np.zeros((side, side, 3))
    for size, share in ((32, 0.5), (8, 0.3), (1, 0.2)):
        picture += (
            share * random.random((-(-side // size), -(-side // size), 3)).repeat(size, 0).repeat(size, 1)[:side, :side]
        )
    return (picture * 255).astype(np.uint8)


def timed(function: Callable[[], Any], best: dict[str, float]) -> Any:
    """Return what a function returns, and lower the seconds that it took at best."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = function()
    took = {"CPU": time.process_time() - cpu, "clock": time.perf_counter() - clock}
    best.update({name: min(best.get(name, math.inf), seconds) for name, seconds in took.items()})
    return result


def compare(row: tuple[int, int, str], blocks: int, side: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Return what one layout came to."""
    scale, folds, names = row
    weights = random_weights(scale, folds=folds, width=64, growth=32, blocks=blocks)
    save_file(NAMES[names](weights), folder / "m.safetensors")
    picture = photo(side)
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    with sdcpp_py.Upscaler(folder / "m.safetensors", threads=torch.get_num_threads(), progress=False) as upscaler:
        for _ in range(rounds):
            reference = timed(lambda: by_torch(weights, picture, folds), theirs)
            whole = timed(lambda: upscaler.upscale(picture, tile_size=0), ours)
        tiled = upscaler.upscale(picture, tile_size=side // 2)
    found = {"whole": psnr(whole, reference), f"tiles of {side // 2}": psnr(tiled, reference)}
    shown = {"scale": scale, "folds": folds, "names": names, "psnr": found}
    return {**shown, "seconds": ours, "torch_seconds": theirs, "ratio": {key: ours[key] / theirs[key] for key in ours}}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Compare the upscaler with the same network in torch.")
    parser.add_argument("--blocks", type=int, default=23, help="residual dense blocks (default: 23, as published)")
    parser.add_argument("--side", type=int, default=128, help="pixels of a side of the picture (default: 128)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (default: 3)")
    parser.add_argument("--json", type=Path, help="write what was found")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = [compare(row, parsed.blocks, parsed.side, parsed.rounds, Path(folder)) for row in ROWS]
    for row in found:
        figures = ", ".join(f"{name} {value:.1f} dB" for name, value in row["psnr"].items())
        took = "; ".join(
            f"{row['seconds'][name]:.2f} s of the {name}, {row['ratio'][name]:.2f} of torch's"
            for name in row["seconds"]
        )
        print(f"scale {row['scale']} folds {row['folds']} names {row['names']}: {figures}; {took}")
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(value >= LEAST for row in found for value in row["psnr"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
