#!/usr/bin/env python3
"""Draw the demo picture: a checkpoint with random weights is written first, so it shows the road, not art."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from make_checkpoint import write_checkpoint

import sdcpp_py

OUT = Path(__file__).resolve().parent.parent / "out"


def main() -> int:
    """Write out/demo.png and print where it is."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "random-sd1.safetensors")
        print("Writing a full-size SD 1.5 checkpoint with random weights (2.1 GB) ...", flush=True)
        write_checkpoint("sd1", model)
        with sdcpp_py.StableDiffusion(model) as sd:
            images = sd.txt2img("a lovely cat", width=256, height=256, steps=4, seed=42)
    images[0].save(OUT / "demo.png")
    print(f"{OUT / 'demo.png'}: seed {images.seeds[0]}, {images.timings.total:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
