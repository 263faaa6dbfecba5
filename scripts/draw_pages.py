#!/usr/bin/env python3
"""Draw the pictures of the documentation's pages with the embedded model, into docs/images."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

import sdcpp_py

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SIDE, GAP, CAPTION = 128, 8, 18


def strip(rows: list[list[Image.Image]], captions: list[str]) -> Image.Image:
    """Return rows of pictures, each enlarged to one size, with a caption above each column."""
    width = GAP + len(captions) * (SIDE + GAP)
    sheet = Image.new("RGB", (width, CAPTION + GAP + len(rows) * (SIDE + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        pen.text((GAP + column * (SIDE + GAP), 4), caption, fill="black", font_size=11)
    for index, row in enumerate(rows):
        for column, image in enumerate(row):
            shown = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(shown, (GAP + column * (SIDE + GAP), CAPTION + GAP + index * (SIDE + GAP)))
    return sheet


def previews(sd: sdcpp_py.StableDiffusion) -> Image.Image:
    """Return what two kinds of previews show of one picture."""
    rows, steps = [], []
    for kind in ("proj", "vae"):
        seen: list[tuple[int, Image.Image]] = []

        def watch(event: sdcpp_py.ProgressEvent, seen: list[tuple[int, Image.Image]] = seen) -> None:
            if event.preview is not None:
                seen.append((event.step, event.preview))

        drawn = sd.txt2img(
            "a blue star on a yellow background", seed=5, preview=kind, preview_interval=4, progress=watch
        )
        rows.append([*(image for _, image in seen), drawn[0]])
        steps = [step for step, _ in seen]
    return strip(rows, [*(f"step {step}" for step in steps), "the picture"])


def edits(sd: sdcpp_py.StableDiffusion) -> Image.Image:
    """Return what docs/pictures.md makes of a picture."""
    photo = sd.txt2img("a red circle on a white background", seed=1)[0]
    dark = [
        sd.img2img("a red circle on a black background", photo, strength=each, seed=1)[0] for each in (0.3, 0.6, 0.9)
    ]
    mask = photo.convert("L").point([255] * 128 + [0] * 128)
    star = sd.inpaint("a blue star on a white background", photo, mask, strength=0.9, seed=1)[0]
    names = ["the picture", "strength 0.3", "strength 0.6", "strength 0.9", "a mask", "inpaint"]
    return strip([[photo, *dark, mask, star]], names)


def main() -> int:
    """Write the pictures, and print where they are."""
    IMAGES.mkdir(exist_ok=True)
    with sdcpp_py.StableDiffusion(progress=False) as sd:
        for name, draw in {"previews": previews, "edits": edits}.items():
            file = IMAGES / f"{name}.png"
            draw(sd).quantize(128).save(file, optimize=True)
            print(f"{file}: {file.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
