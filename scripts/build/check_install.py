#!/usr/bin/env python3
"""Draw with the embedded model and look at the picture: the installed package works here.

Needs nothing but the package. Ends with 1 when the picture is not a red circle on white or, with a reference, not that.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import sdcpp_py
from sdcpp_py.models import EMBEDDED_DEFAULTS

PROMPT = "a red circle on a white background"


def main() -> int:
    """Draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="write the picture to this PNG")
    parser.add_argument("--reference", type=Path, help="a PNG drawn elsewhere with the same seed")
    parser.add_argument("--tolerance", type=float, default=2.0, help="mean difference of 255 (default: 2)")
    parser.add_argument("--repeat", type=int, default=1, help="draw so often and print the median time")
    parser.add_argument("--steps", type=int, default=EMBEDDED_DEFAULTS["steps"], help="sampling steps")
    parser.add_argument("--device", default="cpu", help="runtime backend (default: cpu)")
    options = parser.parse_args()
    report = sdcpp_py.doctor()
    for line in report["problems"]:
        print(f"problem: {line}")
    for device in report["devices"]:
        print(f"{device['name']}: {Path(device['module_path'] or 'built in').name}")
    seconds = []
    with sdcpp_py.StableDiffusion(runtime_backend=options.device) as sd:
        for _ in range(options.repeat):
            start = time.perf_counter()
            image = sd.txt2img(PROMPT, seed=1, **{**EMBEDDED_DEFAULTS, "steps": options.steps})[0]
            seconds.append(time.perf_counter() - start)
    print(f"Python {sys.version.split()[0]}, sdcpp-py {sdcpp_py.__version__}: {statistics.median(seconds):.3f} s")
    if options.output:
        image.save(options.output)
    pixels = np.asarray(image, dtype=np.int16)
    if options.reference:
        difference = np.abs(pixels - np.asarray(Image.open(options.reference).convert("RGB"), dtype=np.int16))
        print(f"difference from {options.reference.name}: mean {difference.mean():.4f}, largest {difference.max()}")
        return 1 if difference.mean() > options.tolerance else 0
    height, width, _ = pixels.shape
    middle, corner = pixels[height // 2, width // 2], pixels[2, 2]
    if not (middle[0] > 150 and max(middle[1], middle[2]) < 100 and min(corner) > 200):
        print(f"the picture is wrong: middle {middle.tolist()}, corner {corner.tolist()}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
