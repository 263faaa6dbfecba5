#!/usr/bin/env python3
"""Draw the README's picture: a grid of prompts, each drawn by the embedded model, with the prompt below it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw

import sdcpp_py

PROMPTS = (
    "a red circle on a white background",
    "a blue star on a yellow background",
    "a large green heart on a white background",
    "a white moon on a purple background",
    "a yellow triangle on a blue background",
    "an orange square on a green background",
    "two pink hearts on a gray background",
    "a black ring on an orange background",
    "a purple diamond on a pink background",
    "a white cross on a red background",
    "three red circles on a white background",
    "a green star in the top left on a brown background",
)
COLUMNS, SIDE, GAP, CAPTION = 4, 128, 12, 30


def grid(images: list[Image.Image]) -> Image.Image:
    """Return the pictures in rows with their prompts below."""
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        x = GAP + index % COLUMNS * (SIDE + GAP)
        y = GAP + index // COLUMNS * (SIDE + CAPTION + GAP)
        sheet.paste(image, (x, y))
        subject, _, ground = prompt.partition(" on a")
        pen.text((x, y + SIDE + 2), f"{subject}\non a{ground}", fill="black", font_size=10, spacing=1)
    return sheet


def main() -> int:
    """Write the picture and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--output", "-o", type=Path, default=root / "out" / "demo.png")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with sdcpp_py.StableDiffusion() as sd:
        drawn = [sd.txt2img(prompt, seed=5) for prompt in PROMPTS]
    grid([images[0] for images in drawn]).save(options.output, optimize=True)
    seconds = sum(images.timings.total for images in drawn)
    print(f"{options.output}: {len(drawn)} pictures in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
