"""What README and docs name is there."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sdcpp_py
from support.build_tree import ROOT
from support.checkpoints import FAMILIES, VARIANTS, VIDEO_FAMILIES, checkpoint_shapes, write_safetensors

PAGES = sorted([ROOT / "README.md", ROOT / "sdcpp_py" / "models" / "MODEL_CARD.md", *(ROOT / "docs").glob("*.md")])
PATH = re.compile(r"(?<![\w/.:-])((?:\.github|cmake|cuda13|docs|native|scripts|sdcpp_py|tests|vendor)/[\w./-]*\w/?)")
LINK = re.compile(r"\]\(([^):#]+)(?:#[^)]*)?\)")

ROWS = {
    "sd1": "SD 1.x, its tiny and SDXS forms",
    "sd2": "SD 2.x",
    "sdxl": "SDXL, SSD-1B, Vega",
    "sd3": "SD 3 medium, SD 3.5",
    "flux": "FLUX.1 dev, schnell, Fill, Control",
    "zimage": "Z-Image, Z-Image-Turbo",
    "qwen_image": "Qwen-Image",
}
"""Names in README's table of the families that the tests draw with."""
VARIANT_ROWS = {"flux2": "FLUX.2 dev, klein"}
"""The same of variants that are families of their own."""
VIDEO_ROWS = {
    "Wan 2.1 T2V, I2V, FLF2V, VACE (videos)": {"wan_t2v", "wan_i2v", "wan_flf2v", "wan_vace"},
    "Wan 2.2 TI2V 5B (videos)": {"wan_ti2v"},
    "Wan 2.2 T2V, I2V A14B (videos)": {"wan_t2v_pair", "wan_i2v_pair"},
}
"""The same of videos, each with its families."""


def is_there(path: Path) -> bool:
    """A module is named without its suffix, as it may become a package."""
    return path.exists() or path.with_name(f"{path.name}.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    text = page.read_text()
    named = {ROOT / path for path in PATH.findall(text)} | {page.parent / path for path in LINK.findall(text)}
    missing = [str(path.relative_to(ROOT)) for path in sorted(named) if not is_there(path)]
    assert missing == []


def test_paths_are_found() -> None:
    """The expressions find what they are for."""
    assert PATH.findall("`docs/a.md`, (scripts/b); python scripts/c.py x/docs/no build/docs/no") == [
        "docs/a.md",
        "scripts/b",
        "scripts/c.py",
    ]
    assert LINK.findall("[a](b.md), [c](d.md#e), [f](https://g)") == ["b.md", "d.md"]
    assert not is_there(ROOT / "docs" / "none.md")


def test_families_are_those_of_the_tests() -> None:
    section = (ROOT / "README.md").read_text().split("## Families it draws with")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line][2:]
    assert set(ROWS) == set(FAMILIES)
    assert set(VARIANT_ROWS) <= set(VARIANTS)
    assert set().union(*VIDEO_ROWS.values()) == set(VIDEO_FAMILIES)
    tested = {name for name, _, how in rows if how != "no"}
    assert tested == {*ROWS.values(), *VARIANT_ROWS.values(), *VIDEO_ROWS, "the embedded model"}
    known = inspect.signature(sdcpp_py.StableDiffusion).parameters
    for _, files, _ in rows:
        assert set(re.findall(r"`(\w+)`", files)) <= set(known)


def example_of(page: str) -> str:
    """Return the first example in Python of a page."""
    return (ROOT / "docs" / page).read_text().split("```python\n")[1].split("```")[0]


def test_the_example_of_upscaling_runs(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(parts / "upscaler.safetensors", tmp_path / "esrgan.pth")
    Image.new("RGB", (24, 16), "teal").save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(example_of("upscale.md"), made)
    assert (made["big"].size, made["huge"].size) == ((48, 32), (96, 64))
    with Image.open("big.png") as image:
        assert image.size == (48, 32)


def test_the_example_of_converting_runs(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(checkpoint, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(example_of("convert.md"), made)
    assert made["done"].misfits
    assert (tmp_path / "model-q8_0.gguf").stat().st_size < checkpoint.stat().st_size


def test_the_example_of_pictures_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = example_of("pictures.md")
    monkeypatch.setitem(sdcpp_py.models.EMBEDDED_DEFAULTS, "steps", 2)  # to be done soon
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(code, made)
    assert [made[name][0].size for name in ("night", "star", "larger")] == [(128, 128), (128, 128), (192, 192)]


def test_the_example_of_parameters_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(example_of("parameters.md").replace("steps=4", "steps=1"), made)
    assert made["again"].tobytes() == made["image"].tobytes() != made["other"].tobytes()
    assert sdcpp_py.read_parameters("small.webp").text == made["found"].text


def test_the_example_of_videos_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    code = (ROOT / "docs" / "video.md").read_text().split("```python\n")[1].split("```")[0]
    for large, small in (("832", "32"), ("480", "32"), ("frames=33", "frames=9"), ("steps=20", "steps=1")):
        assert large in code
        code = code.replace(large, small)  # to be done soon
    prefixes = {
        "diffusion_model": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "t5xxl": "text_encoders.t5xxl.transformer.",
    }
    for part, prefix in prefixes.items():
        found = re.search(rf'{part}="(.*?)"', code)
        assert found is not None
        shapes = checkpoint_shapes("wan_t2v", tiny=True).items()
        own = {name.removeprefix(prefix): shape for name, shape in shapes if name.startswith(prefix)}
        write_safetensors(tmp_path / found[1], own, dtype="f16", seed=0, metadata={})
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(code, made)
    assert (len(made["waves"]), made["waves"].size) == (9, (32, 32))
    assert {path.name for path in tmp_path.iterdir()} >= {"waves.webp", "waves.mp4", "first.png"}
