"""Lanes together with all that a picture may have: pixels are those of the picture drawn alone, on the CPU.

The whole product is marked slow; the other test draws every pair of what two of them may be, of one family. Both run in
processes of their own with the loopback accelerator as a device.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from support.checkpoints import FAMILIES, checkpoint_shapes, write_checkpoint, write_lora, write_parts
from support.checkpoints.files import write_safetensors
from support.children import in_child
from support.loopback import Loopback
from support.placed_model import assert_empty
from support.streaming import GIB, PLENTY, PROMPTS

EMBEDDED_LORA = Path(__file__).parent / "data" / "embedded-outline.safetensors"
MODELS = ("embedded", *FAMILIES, "flux2", "sd1_pix2pix")
SKIPPING = sdcpp_py.SkipLayerGuidance(layers=[1], scale=2.0, layer_start=0.0, layer_end=1.0)
GUIDANCES: dict[str, tuple[int, dict[str, Any]]] = {
    "none": (1, {"cfg_scale": 1.0}),
    "cfg": (2, {"cfg_scale": 5.0}),
    "image": (3, {"cfg_scale": 5.0, "image_cfg_scale": 2.0}),
    "skipped layers": (3, {"cfg_scale": 5.0, "skip_layer_guidance": SKIPPING}),
}
"""What a picture is guided by: passes that are lanes, and options."""
PICTURE = {**PROMPTS, "width": 64, "height": 64, "sampler": "euler_a", "eta": 1.0}
LOOK = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (64, 64, 3), np.uint8)
TILES = sdcpp_py.Tiling(tile_size_x=4, tile_size_y=4)

Cell = Mapping[str, Any]


def factors(model: str) -> dict[str, tuple[Any, ...]]:
    """Return what may be combined of a model: factor -> levels."""
    more = {"sd1_pix2pix": ("image",), "sd3": ("skipped layers",), "flux": ("skipped layers",)}.get(model, ())
    return {
        "lanes": (1, 2, 4, 8),
        "control": (False, True) if model == "sd1" else (False,),
        "tiles": (False, True),
        "guidance": ("none", "cfg", *more),
        "pictures": (1, 4),
        "lora": (False, True),
        "cancel": (False, True),
    }


def whole_product(model: str) -> list[Cell]:
    """Return all cells. Each is cancelled once it was drawn, so that the next one comes after that."""
    levels = {**factors(model), "cancel": (True,)}
    return [dict(zip(levels, cell, strict=True)) for cell in itertools.product(*levels.values())]


def all_pairs(model: str) -> list[Cell]:
    """Return few cells in which every two levels of different factors meet."""
    levels = factors(model)
    cells = [dict(zip(levels, cell, strict=True)) for cell in itertools.product(*levels.values())]
    wanted = {pair for cell in cells for pair in itertools.combinations(cell.items(), 2)}
    chosen: list[Cell] = []
    while wanted:
        best = max(cells, key=lambda cell: len(wanted.intersection(itertools.combinations(cell.items(), 2))))
        wanted.difference_update(itertools.combinations(best.items(), 2))
        chosen.append(best)
    return sorted(chosen, key=lambda cell: (cell["lanes"], cell["control"], cell["tiles"]))


def lanes_of(cell: Cell, pictures: int) -> int:
    """Return the lanes that a cell's pictures have: passes of a step together, of as many pictures as are wanted."""
    passes, wanted = GUIDANCES[cell["guidance"]][0], int(cell["lanes"])
    return min(wanted, passes) if wanted <= passes else passes * min(pictures, wanted // passes)


def write_any_lora(path: Path, family: str) -> Path:
    """Write a LoRA for some layers of a family's denoiser, in the names of the checkpoint."""
    if family.startswith("sd1"):
        return write_lora(path, tiny=True)
    shapes: dict[str, tuple[int, ...]] = {}
    layers = {name: shape for name, shape in checkpoint_shapes(family, tiny=True).items() if len(shape) == 2}
    for name in [name for name in layers if "attn" in name or "attention" in name][:12]:
        layer = name.removeprefix("model.").removesuffix(".weight")
        shapes |= {f"{layer}.lora_A.weight": (4, layers[name][1]), f"{layer}.lora_B.weight": (layers[name][0], 4)}
    write_safetensors(path, shapes, dtype="f16", seed=0, metadata={"format": "pt"})
    return path


class Files:
    """The files of a family."""

    def __init__(self, family: str, folder: Path, steps: int) -> None:
        self.model: Path | None = None
        self.picture = {**PICTURE, "steps": steps}
        self.lora, self.control = EMBEDDED_LORA, folder / "control.safetensors"
        self.edits = family == "sd1_pix2pix"
        if family != "embedded":
            self.model = write_checkpoint(family, folder / "model.safetensors", tiny=True)["model"]
            self.lora = write_any_lora(folder / "lora.safetensors", family)
        if family == "sd1":
            write_parts(folder)

    def load(self, cell: Cell, **placed: Any) -> sdcpp_py.StableDiffusion:
        control = self.control if cell["control"] else None
        more = {"threads": 1, "lora_apply_mode": "at_runtime", "progress": False}
        return sdcpp_py.StableDiffusion(self.model, control_net=control, **more, **placed)

    def draw(self, sd: sdcpp_py.StableDiffusion, cell: Cell, pictures: int, seed: int = 1, **more: Any) -> list[str]:
        """Return the hashes of the pixels of a cell's pictures."""
        options = {**self.picture, **GUIDANCES[cell["guidance"]][1], "seed": seed, "batch_count": pictures, **more}
        if cell["lora"]:
            options["loras"] = [sdcpp_py.Lora(self.lora, 0.8)]
        if cell["control"]:
            options["control_image"] = LOOK
        if cell["tiles"]:
            options["vae_tiling"] = TILES
        images = sd.edit(images=[LOOK], **options) if self.edits else sd.txt2img(**options)
        return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


class Drawing:
    """A family's cells, drawn on the loopback accelerator and compared with pictures drawn alone on the CPU.

    Args:
        family: the model's.
        folder: where files are written.
        again: whether what was cancelled is drawn again at once; else what comes next shows that nothing is left of it.
        steps: of each picture.
    """

    def __init__(self, family: str, folder: Path, again: bool, steps: int) -> None:
        self.loopback, self.files, self.again = Loopback(), Files(family, folder, steps), again
        self.on_cpu: dict[bool, sdcpp_py.StableDiffusion] = {}
        self.alone: dict[tuple[Any, ...], list[str]] = {}
        self.budgets: dict[int, float] = {}
        self.cancelled = 0

    def check(self, cells: Sequence[Cell]) -> None:
        """Draw cells, of which those that are loaded in the same way follow one another."""
        for key, same in itertools.groupby(cells, lambda cell: (cell["lanes"], cell["control"], cell["tiles"])):
            os.environ["SDCPP_LANES"] = str(key[0])
            left = list(same)
            budget = self.budget(max(left, key=lambda cell: lanes_of(cell, cell["pictures"])))
            while left:
                with self.load(left[0], budget) as sd:
                    while left and self.fits(sd, left[0], budget):
                        del left[0]
                budget *= 1.2  # the other networks take more
                assert budget < PLENTY
            assert_empty(self.loopback)
        while self.on_cpu:
            self.on_cpu.popitem()[1].close()

    def budget(self, most: Cell) -> float:
        """Return what keeps about half of the denoiser's weights away, beside the lanes of a cell, in GiB."""
        lanes = lanes_of(most, most["pictures"])
        if lanes not in self.budgets:
            plain = {**most, "control": False, "tiles": False, "lora": False}
            with self.load(plain, PLENTY) as sd:
                self.files.draw(sd, plain, plain["pictures"], steps=1)
                takes = denoiser(sd)
            self.budgets[lanes] = (takes.compute_bytes + 0.6 * takes.weight_bytes) / GIB
        return self.budgets[lanes] * (1.4 if most["control"] else 1.0)

    def load(self, cell: Cell, max_vram: float) -> sdcpp_py.StableDiffusion:
        away = "te=cpu,all=loopback0" if cell["tiles"] else "te=cpu,vae=cpu,all=loopback0"
        return self.files.load(cell, runtime_backend=away, params_backend="cpu", stream_layers=True, max_vram=max_vram)

    def fits(self, sd: sdcpp_py.StableDiffusion, cell: Cell, budget: float) -> bool:
        """Check a cell; False where the budget is too small for it, or for as many lanes."""
        pictures = cell["pictures"]
        expected = self.expected(cell, pictures)
        self.loopback.reset()
        try:
            assert self.files.draw(sd, cell, pictures) == expected, cell
        except sdcpp_py.DeviceMemoryError:
            return False
        found, books = denoiser(sd), self.loopback.books()
        assert books["device_bytes_peak"] <= budget * GIB + 1, cell
        assert books["violations"] == 0
        if found.lanes < lanes_of(cell, pictures):
            return False
        assert found.lanes == lanes_of(cell, pictures), cell
        assert (found.saved_bytes > 0) == (found.lanes > 1 and found.streamed_bytes > 0), cell
        if cell["cancel"]:
            self.cancelled += 1
            cancel(self.files, sd, cell, 1 + self.cancelled % 5)
            assert not self.again or self.files.draw(sd, cell, pictures) == expected, cell
        return True

    def expected(self, cell: Cell, pictures: int) -> list[str]:
        """Return the hashes of pictures drawn one by one."""
        known = self.alone.setdefault(tuple(cell[name] for name in ("control", "tiles", "guidance", "lora")), [])
        if len(known) < pictures:
            if cell["control"] not in self.on_cpu:
                self.on_cpu[cell["control"]] = self.files.load(cell, runtime_backend="cpu")
            sd = self.on_cpu[cell["control"]]
            known += [self.files.draw(sd, cell, 1, 1 + index)[0] for index in range(len(known), pictures)]
        assert len(set(known)) == len(known)
        return known[:pictures]


def denoiser(sd: sdcpp_py.StableDiffusion) -> Any:
    """Return how the denoiser was streamed."""
    (row,) = (stream for stream in sd.transfer_report().streams if stream.module == "diffusion")
    return row


def cancel(files: Files, sd: sdcpp_py.StableDiffusion, cell: Cell, after: int) -> None:
    """End a cell's call after so many calls back while it samples, or in the first step."""
    heard = 0

    def hear(event: sdcpp_py.ProgressEvent) -> None:
        nonlocal heard
        heard += event.phase == "sampling"
        if heard >= min(after, 1 + cell["pictures"]):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        files.draw(sd, cell, cell["pictures"], progress=hear)


@in_child
def test_every_pair(tmp_path: Path) -> None:
    Drawing("sd1", tmp_path, again=True, steps=1).check(all_pairs("sd1"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("family", MODELS)
@in_child
def test_the_whole_product(family: str, tmp_path: Path) -> None:
    Drawing(family, tmp_path, again=False, steps=2).check(whole_product(family))
