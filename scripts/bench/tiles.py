#!/usr/bin/env python3
"""Measure how a picture that the VAE decodes in tiles differs from the same one decoded at once.

    scripts/bench/tiles.py [--model FILE] [--size PIXELS ...] [--tile LATENTS ...] [--json FILE]

For each size and each tile that is smaller than it, of several prompts: the PSNR in dB, the largest difference of a
pixel, and for seams what columns and rows are on average (means over colours and a whole line): how far one is off at
most, and how much more one changes from its neighbour at a tile's border than it does decoded at once. All differences
are of 255.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sdcpp_py
from sdcpp_py.reports import table

PROMPTS = (
    "a red circle on a white background",
    "a yellow triangle on a green background",
    "a blue square on a grey background",
)
LATENT = 8  # pixels of a side that one latent pixel is
HALF = 2  # tiles overlap by this part


def compare(whole: np.ndarray, tiled: np.ndarray, tile: int) -> dict[str, float]:
    """Return the figures of two pictures, float arrays of shape (height, width, 3), in tiles of so many pixels."""
    off = tiled - whole
    mse = float((off**2).mean())
    lines = [off.mean(axis=axis) for axis in (0, 1)]  # of columns, of rows: (length, 3)
    borders = [
        line[start] - line[start - 1] for line in lines for start in range(tile // HALF, len(line), tile // HALF)
    ]
    return {
        "psnr": 10 * float(np.log10(255**2 / mse)) if mse else float("inf"),
        "largest": float(np.abs(off).max()),
        "line": max(float(np.abs(line).max()) for line in lines),
        "border": max(float(np.abs(step).max()) for step in borders),
    }


def measure(model: Path | None, sizes: Sequence[int], tiles: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each size and tile, with the worst figures of all prompts."""
    rows = []
    with sdcpp_py.StableDiffusion(model, runtime_backend="cpu", progress=False) as sd:
        for size in sizes:
            given: dict[str, Any] = {"width": size, "height": size, "steps": 8, "seed": 3}
            wholes = [np.asarray(sd.txt2img(prompt, **given)[0], np.float64) for prompt in PROMPTS]
            for tile in (tile for tile in tiles if tile * LATENT < size):
                cut = sdcpp_py.Tiling(tile_size_x=tile, tile_size_y=tile)
                tiled = [sd.txt2img(prompt, vae_tiling=cut, **given)[0] for prompt in PROMPTS]
                found = [
                    compare(whole, np.asarray(each, np.float64), tile * LATENT)
                    for whole, each in zip(wholes, tiled, strict=True)
                ]
                worst = {name: max(row[name] for row in found) for name in found[0]}
                rows.append({"size": size, "tile": tile, **worst, "psnr": min(row["psnr"] for row in found)})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a checkpoint (default: the embedded model)")
    parser.add_argument("--size", type=int, nargs="+", default=[256, 512], help="of the pictures, in pixels")
    parser.add_argument("--tile", type=int, nargs="+", default=[16, 32], help="sides of tiles, in latent pixels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args(arguments)
    rows = measure(options.model, options.size, options.tile)
    digits = {"psnr": 1, "largest": 0, "line": 1, "border": 2}
    cells = [
        (
            f"{row['size']}x{row['size']}",
            str(row["tile"]),
            *(f"{row[name]:.{count}f}" for name, count in digits.items()),
        )
        for row in rows
    ]
    header = ("picture", "tile", "PSNR", "largest", "line off", "step at a border")
    print(table(header, cells, header[2:]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
