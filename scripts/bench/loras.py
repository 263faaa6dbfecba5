#!/usr/bin/env python3
"""Print how far LoRAs are from checkpoints that numpy merged: every format, both apply modes, in dB.

    scripts/bench/loras.py                       # every row
    scripts/bench/loras.py --family sd1 --kind "dora*" --weights f16

A row is a tiny model of a family, its weights' type, a kind of change and a dialect of names. "plain" is how far the
picture without the LoRA is from the truth; both modes must be at least 55 dB, where "inf" is the same picture.
Quantised weights: the truth of merging is dequantised, added to and quantised again; that of applying at run time is
dequantised and added to, drawn with f32 weights, where the engine multiplies quantised ones. How far that is from it
without a LoRA is "floor": products with quantised weights round what they read as well, so that one rounding more or
less in any layer shows as much. What is asked for is 55 dB, or 3 dB below the floor where that is less.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402

from sdcpp_py import Lora, SdcppError, StableDiffusion  # noqa: E402
from support import lora_formats as formats  # noqa: E402
from support import lora_layers as layers  # noqa: E402
from support.checkpoints import write_checkpoint  # noqa: E402

ENOUGH = 55.0
SPREAD = 3.0
"""How much the floor differs from picture to picture, in dB."""

MODES = ("immediately", "at_runtime")
UNQUANTISED = (
    *("img_in.", "txt_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.", "x_embedder.", "t_embedder."),
    *("y_embedder.", "pos_embed", "context_embedder.", "time_embed.", "label_emb.", "embedding"),
)
"""What the loader does not quantise."""


@dataclass(frozen=True)
class Row:
    """One line of the matrix."""

    family: str
    weights: str
    kind: str
    dialect: str
    part: str = ""  # "": all layers, else those whose names contain one of these words, separated by "|"


def rows() -> Iterator[Row]:
    """Yield the whole matrix."""
    for weights in ("f16", "f32"):
        for kind in formats.KINDS:
            yield Row("sd1", weights, kind, "kohya")
    for kind in ("lora", "tucker", "loha", "lokr", "dora outputs", "dora inputs", "diff"):
        for weights in ("q8_0", "q4_0"):
            yield Row("sd1", weights, kind, "kohya")
    for dialect in formats.DIALECTS:
        if dialect not in ("OneTrainer", "kohya, __"):
            yield Row("sd1", "f16", "lora", dialect)
    for dialect in ("kohya", "kohya, release", "diffusers", "diffusers, middle", "diffusers, old", "PEFT", "ComfyUI"):
        yield Row("sdxl", "f16", "lora", dialect)
    for kind in ("loha", "lokr", "dora outputs"):
        yield Row("sdxl", "f16", kind, "kohya")
    yield Row("sd2", "f16", "lora", "kohya, te")
    transformers = ("kohya", "kohya, release", "diffusers", "PEFT", "PEFT, adapter", "ComfyUI", "LyCORIS", "OneTrainer")
    for family in ("sd3", "flux", "zimage", "qwen_image"):
        for dialect in transformers:
            yield Row(family, "f16", "lora", dialect)
        for kind in ("loha", "lokr", "lokr whole", "dora outputs", "dora inputs", "dora magnitude", "diff"):
            yield Row(family, "f16", kind, "diffusers" if kind == "dora magnitude" else "kohya")
        for part in ("to_q", "to_k", "to_v", "to_q|to_v"):
            yield Row(family, "f16", "lora", "diffusers", part)
        yield Row(family, "q8_0", "lora", "diffusers")
    yield Row("flux", "f16", "lora", "diffusers", "proj_mlp")
    yield Row("flux", "f16", "xlabs", "xlabs")
    yield Row("zimage", "f16", "lora", "kohya, __")


class Family:
    """A tiny checkpoint, and what it draws."""

    def __init__(self, name: str, weights: str, folder: Path) -> None:
        self.name, self.weights, self.folder = name, weights, folder
        self.quantised = weights if weights.startswith("q") else ""
        stored = "f32" if self.quantised else weights
        self.path = folder / f"{name}-{weights}.safetensors"
        write_checkpoint(name, self.path, tiny=True, dtype=stored)
        self.tensors = layers.read_tensors(self.path)
        self.code = stored.upper()
        for name_of, tensor in self.tensors.items():
            if tensor.ndim == 4:  # the engine keeps convolutions as f16
                self.tensors[name_of] = tensor.astype(np.float16).astype(np.float32)
        options: dict[str, Any] = {"weight_type": weights} if self.quantised else {}
        self.models = {mode: StableDiffusion(self.path, lora_apply_mode=mode, **options) for mode in MODES}
        if self.quantised:
            for name_of, tensor in self.tensors.items():
                if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 and not any(word in name_of for word in UNQUANTISED):
                    self.tensors[name_of] = layers.dequantised(tensor, weights)
        self.plain = {mode: self.draw(model) for mode, model in self.models.items()}
        self.floor = math.inf
        if self.quantised:
            self.floor = formats.decibels(self.plain["at_runtime"], self.drawn_from({}, "f32"))

    def close(self) -> None:
        """Free the models."""
        for model in self.models.values():
            model.close()
        self.path.unlink()

    def draw(self, model: StableDiffusion, lora: Path | None = None) -> layers.Array:
        """Return a picture's pixels."""
        loras = [Lora(lora)] if lora else []
        return np.asarray(model.txt2img("a cat", width=64, height=64, steps=2, seed=1, cfg_scale=1.0, loras=loras)[0])

    def drawn_from(self, merged: dict[str, layers.Array], weight_type: str = "") -> layers.Array:
        """Return the picture of the checkpoint with other weights."""
        path = self.folder / "truth.safetensors"
        layers.write_tensors(path, {**self.tensors, **merged}, self.code)
        options: dict[str, Any] = {"weight_type": weight_type} if weight_type else {}
        with StableDiffusion(path, **options) as model:
            return self.draw(model)

    def sample(self, row: Row) -> formats.Sample:
        """Return a row's LoRA."""
        if row.dialect == "xlabs":
            return formats.xlabs(self.tensors)
        words = row.part.split("|")
        wanted = lambda layer: any(word in layer.path for word in words)  # noqa: E731 - "" is in every name
        return formats.build(self.name, self.tensors, row.kind, row.dialect, wanted)


def measure(family: Family, row: Row) -> tuple[float, dict[str, float | str]]:
    """Return how far the plain picture and that of each mode are from the truth, in dB, or a mode's error."""
    sample = family.sample(row)
    lora = family.folder / "lora.safetensors"
    layers.write_tensors(lora, sample.tensors)
    truths = {"immediately": family.drawn_from(sample.merged, family.quantised)}
    truths["at_runtime"] = family.drawn_from(sample.merged, "f32") if family.quantised else truths["immediately"]
    found: dict[str, float | str] = {}
    for mode, model in family.models.items():
        try:
            found[mode] = formats.decibels(family.draw(model, lora), truths[mode])
        except SdcppError as error:
            found[mode] = str(error).splitlines()[0]
    return formats.decibels(family.plain["immediately"], truths["immediately"]), found


def main() -> int:
    """Print the matrix; the exit status is 1 when a row is too far from the truth."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("family", "weights", "kind", "dialect"):
        parser.add_argument(f"--{name}", default="*", help="rows whose entry matches this pattern only")
    given = vars(parser.parse_args())
    wanted = list(rows())
    for name, pattern in given.items():
        wanted = [row for row in wanted if fnmatch.fnmatch(getattr(row, name), pattern)]
    bad = 0
    titles = f"{'family':10} {'weights':7} {'kind':15} {'dialect':18} {'part':9}"
    print(f"{titles} {'plain':>6} {'merged':>7} {'run time':>8}  floor")
    with tempfile.TemporaryDirectory() as folder:
        for key in dict.fromkeys((row.family, row.weights) for row in wanted):
            family = Family(*key, Path(folder))
            for row in wanted:
                if (row.family, row.weights) != key:
                    continue
                try:
                    plain, found = measure(family, row)
                except ValueError as error:
                    print(f"{row.family:10} {row.weights:7} {row.kind:15} {row.dialect:18} {row.part:9} {error}")
                    continue
                enough = min(ENOUGH, family.floor - SPREAD)
                fails = [mode for mode, value in found.items() if isinstance(value, str) or value < enough]
                bad += bool(fails)
                cells = " ".join(f"{v:7.1f}" if isinstance(v, float) else "  error" for v in found.values())
                print(
                    f"{row.family:10} {row.weights:7} {row.kind:15} {row.dialect:18} {row.part:9} {plain:6.1f} {cells} "
                    f" {family.floor:5.1f}{'  FAR: ' + ', '.join(fails) if fails else ''}",
                    flush=True,
                )
                for mode, value in found.items():
                    if isinstance(value, str):
                        print(f"    {mode}: {value}")
            family.close()
    print(f"{bad} of {len(wanted)} rows are too far from the truth")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
