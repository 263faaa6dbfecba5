#!/usr/bin/env python3
"""Ask the embedded model for scenes of its grammar, read the pictures back, and print what came out as a table.

Half of the scenes are combinations of shape, colour and background that training never showed. Ends with 1 when fewer
than 95 % of the shape's colours or of the backgrounds, or fewer than 85 % of the shapes, are as asked for.

Needs scipy besides the package.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import sdcpp_py
from embedded.grammar import Scene, caption, held_out, random_scene
from embedded.reading import read
from sdcpp_py.models import EMBEDDED_DEFAULTS

WANTED = {"colour": 0.95, "background": 0.95, "shape": 0.85}


def scenes(count: int, seed: int) -> Iterator[Scene]:
    """Yield distinct scenes, every second one a held-out combination."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        scene = random_scene(rng, training=False)
        unseen = held_out(scene.shape, scene.colour, scene.background)
        if scene not in seen and unseen == bool(len(seen) % 2):
            seen.add(scene)
            yield scene


def main() -> int:
    """Draw, read, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="number of scenes (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of scenes; each is drawn with its number")
    parser.add_argument("--model", type=Path, help="another checkpoint of this grammar")
    cfg = EMBEDDED_DEFAULTS["cfg_scale"]
    parser.add_argument("--cfg-scale", type=float, default=cfg, help=f"guidance (default: {cfg:g})")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    drawing = EMBEDDED_DEFAULTS | {"cfg_scale": options.cfg_scale}
    right = dict.fromkeys(WANTED, 0)
    rows = []
    print(f"{'prompt':<62} {'held out':<9} {'shape':<9} {'colour':<8} {'background':<10}  wrong")
    with sdcpp_py.StableDiffusion(options.model) as sd:
        for number, scene in enumerate(scenes(options.count, options.seed)):
            prompt = caption(scene)
            image = sd.txt2img(prompt, seed=number, **drawing)[0]
            found = read(np.asarray(image))
            wrong = [name for name in WANTED if getattr(found, name) != getattr(scene, name)]
            for name in WANTED:
                right[name] += name not in wrong
            unseen = held_out(scene.shape, scene.colour, scene.background)
            rows.append({"prompt": prompt, "held_out": unseen, "found": vars(found), "wrong": wrong})
            print(
                f"{prompt:<62} {'yes' if unseen else '':<9} {found.shape:<9} {found.colour:<8} {found.background:<10}"
                f"  {' '.join(wrong)}",
                flush=True,
            )
    shares = {name: right[name] / options.count for name in WANTED}
    for name, share in shares.items():
        print(f"{name:<10} {right[name]} of {options.count} ({share:.1%}), at least {WANTED[name]:.0%} wanted")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "shares": shares}, indent=1) + "\n")
    return 0 if all(shares[name] >= WANTED[name] for name in WANTED) else 1


if __name__ == "__main__":
    sys.exit(main())
