"""The commands that pictures go into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcpp_py import cli
from sdcpp_py.cli.flags import flags, options_of
from sdcpp_py.modes import DRAWING, EDIT, IMG2IMG, INPAINT, TXT2IMG, Mode
from support.checkpoints import write_checkpoint

PHOTO = Image.fromarray(np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8))
FEW = ["--steps", "2", "--seed", "1", "--cfg-scale", "1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo and a mask, which is the current one."""
    PHOTO.save(tmp_path / "photo.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask.save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_img2img_writes_picture_and_report(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["img2img", "-m", checkpoint, "-p", "a cat", "-i", "photo.png", "--strength", "0.5", *FEW]
    assert run(*arguments, "-o", "out.png", "--report", "r.json", capsys=capsys) == (0, "out.png  seed 1\n", "")
    with Image.open("out.png") as image:
        assert image.size == (64, 64)
        assert "Denoising strength: 0.5" in image.info["parameters"]
    report = json.loads(Path("r.json").read_text())
    assert report["parameters"]["strength"] == 0.5
    assert report["timings"]["encoding"] > 0
    assert report["plan"]["encoder_bytes"] > 0


def test_inpaint_leaves_what_is_outside(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inpaint", "-m", checkpoint, "-p", "a cat", "-i", "photo.png", "--mask", "mask.png", *FEW]
    assert run(*arguments, "--invert", "-o", "out.png", capsys=capsys)[::2] == (0, "")
    with Image.open("out.png") as image:
        changed = (np.asarray(image) != np.asarray(PHOTO)).any(axis=2)
        assert "Mask mode: Inpaint not masked" in image.info["parameters"]
    assert changed[16:48, 16:48].sum() == 0
    assert changed.mean() > 0.3


def test_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint("flux", tmp_path / "flux.safetensors", tiny=True)
    arguments = ["edit", "-m", "flux.safetensors", "-p", "a", "-r", "photo.png", "-r", "mask.png", *FEW]
    assert run(*arguments, "--increase-ref-index", "-o", "out.png", capsys=capsys) == (0, "out.png  seed 1\n", "")
    with Image.open("out.png") as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("mode", "arguments", "options"),
    [
        (IMG2IMG, {"--init-img": "photo.png", "--strength": 0.4}, {"strength": 0.4}),
        (IMG2IMG, {"--resize-mode": "pad", "--control-image": "photo.png"}, {"resize_mode": "pad"}),
        (INPAINT, {"--mask-blur": 4, "--only-masked": True, "--padding": 8, "--invert": True},
         {"mask_blur": 4, "only_masked": True, "padding": 8, "invert": True}),
        (EDIT, {"--disable-auto-resize-ref-image": True, "--increase-ref-index": True},
         {"auto_resize": False, "increase_ref_index": True}),
        (TXT2IMG, {"--canny": True, "--canny-low": 50.0, "--canny-high": 90.0},
         {"canny": True, "canny_low": 50.0, "canny_high": 90.0}),
    ],
    ids=lambda value: value.name if isinstance(value, Mode) else "",
)  # fmt: skip
def test_flags(mode: Mode, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    by_name = {name: flag for flag in flags(mode.declared) for name in flag.names}
    found = options_of({by_name[name]: value for name, value in arguments.items()}, mode.declared)
    assert {name: found[name] for name in options} == options


def test_the_flags_are_sd_clis() -> None:
    names = {name for mode in DRAWING for flag in flags(mode.declared) for name in flag.names}
    assert {
        "-i", "--init-img", "--mask", "-r", "--ref-image", "--strength", "--control-image", "--control-strength",
        "--canny", "--increase-ref-index", "--disable-auto-resize-ref-image",
    } <= names  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["img2img", "-p", "a"], 2, "Missing option '--init-img'"),
        (["inpaint", "-p", "a", "-i", "photo.png"], 2, "Missing option '--mask'"),
        (["edit", "-p", "a"], 2, "Missing option '--ref-image'"),
        (
            ["img2img", "-p", "a", "-i", "none.png"],
            1,
            "error: --init-img none.png: not a picture, there is no such file",
        ),
        (["img2img", "-p", "a", "-i", "."], 1, "not a picture, but a directory"),
        (
            ["img2img", "-p", "a", "-i", "photo.png", "--strength", "2"],
            1,
            "--strength must be a finite number from 0 to 1",
        ),
        (["img2img", "-p", "a", "-i", "photo.png", "--strength", "0"], 1, "leaves no step to draw"),
        (["img2img", "-p", "a", "-i", "photo.png", "-W", "32"], 1, "--init-img is 64x64, but 32x32 is drawn"),
        (["img2img", "-p", "a", "-i", "photo.png", "--resize-mode", "x"], 1, "--resize-mode 'x' is not error|crop|pad"),
        (
            ["inpaint", "-p", "a", "-i", "photo.png", "--mask", "photo.png", "--mask-blur", "-1"],
            1,
            "--mask-blur must be",
        ),
        (["txt2img", "-p", "a", "--canny"], 1, "--canny needs a --control-image"),
        (["txt2img", "-p", "a", "--canny-low", "30"], 1, "--canny-low needs --canny"),
        (
            ["txt2img", "-p", "a", "--canny", "--canny-low", "300", "--control-image", "photo.png"],
            1,
            "--canny-low must be at most --canny-high, 200, not 300",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors(arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong is said before a model is loaded."""
    found, out, err = run(*arguments, "-m", "none.safetensors", capsys=capsys)
    assert (found, out) == (status, "")
    assert message in err
    assert status == 2 or err.count("\n") == 1


def test_upscale_writes_a_larger_picture(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("LA", (20, 10), (90, 30)).save(tmp_path / "small.png")
    arguments = ["upscale", "-i", str(tmp_path / "small.png"), "-m", str(parts / "upscaler.safetensors")]
    report = tmp_path / "r.json"
    assert cli.main([*arguments, "-o", str(tmp_path / "big.png"), "--report", str(report)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'big.png'}  40x20\n"
    with Image.open(tmp_path / "big.png") as image:
        assert (image.mode, image.size) == ("LA", (40, 20))
        assert image.info["parameters"] == "Postprocess upscale by: 2, Postprocess upscaler: upscaler"
    assert [row["module"] for row in json.loads(report.read_text())["memory"]["modules"]] == ["upscaler"]
    assert cli.main([*arguments, "-o", str(tmp_path / "big.xyz")]) == 1
    assert cli.main([*arguments[:3], "-m", str(parts / "tae.safetensors"), "-o", str(tmp_path / "no.png")]) == 1
    assert "holds a small autoencoder, not an upscaler" in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()
