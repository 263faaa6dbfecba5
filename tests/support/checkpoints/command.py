"""The command that writes them: scripts/make_checkpoint.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .families import FAMILIES
from .files import write_checkpoint, write_lora
from .wan import VIDEO_FAMILIES
from .weights import DTYPES


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Write a checkpoint with seeded random weights.")
    parser.add_argument("out", metavar="OUT", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--family", choices=[*FAMILIES, *VIDEO_FAMILIES], default="sd1", help="model family (default: sd1)"
    )
    parser.add_argument("--tiny", action="store_true", help="as narrow as the layout allows")
    parser.add_argument("--lora", action="store_true", help="write a LoRA for the sd1 checkpoint instead")
    parser.add_argument("--dtype", choices=list(DTYPES), default="f16", help="weight type (default: f16)")
    parser.add_argument("--seed", type=int, default=0, help="which random weights (default: 0)")
    options = parser.parse_args(arguments)
    if options.lora and options.family != "sd1":
        parser.error("--lora is made for --family sd1 only")
    sizes = {"tiny": options.tiny, "dtype": options.dtype, "seed": options.seed}
    try:
        if options.lora:
            paths = {"lora": write_lora(options.out, **sizes)}
        else:
            paths = write_checkpoint(options.family, options.out, **sizes)
    except (OSError, ValueError) as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 1
    for keyword, path in paths.items():
        print(f"{keyword}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
