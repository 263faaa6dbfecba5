"""The commands that draw videos."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcpp_py import cli
from sdcpp_py.cli.flags import flags
from sdcpp_py.modes import FILMING, LOADING
from support.checkpoints import write_checkpoint

FEW = ["--video-frames", "5", "--steps", "2", "--seed", "1", "--cfg-scale", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoints that are drawn with."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("wan_i2v", "wan_vace", "wan_t2v_pair"):
        write_checkpoint(family, folder / f"{family}.safetensors", tiny=True)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo, its mirror image and a folder of frames, which is the current one."""
    photo = Image.fromarray(np.random.default_rng(5).integers(0, 256, (32, 32, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "end.png")
    (tmp_path / "frames").mkdir()
    for index in range(5):
        photo.rotate(index).save(tmp_path / "frames" / f"{index:02}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_img2vid_writes_video_and_report(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["img2vid", "-m", models / "wan_i2v.safetensors", "-p", "a cat", "-i", "photo.png", *FEW]
    more = ["--end-img", "end.png", "--fps", "8", "-o", "out.webp", "--report", "r.json"]
    assert run(*arguments, *more, capsys=capsys) == (0, "out.webp  seed 1\n", "")
    with Image.open("out.webp") as image:
        assert (image.n_frames, image.size) == (5, (32, 32))
    report = json.loads(Path("r.json").read_text())
    assert (report["files"], report["seeds"], report["parameters"]["fps"]) == (["out.webp"], [1], 8.0)
    assert report["timings"]["encoding"] > 0


def test_txt2vid_follows_frames_and_has_a_pair(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ["txt2vid", "-p", "a cat", "-W", "32", "-H", "32"]
    vace = ["-m", models / "wan_vace.safetensors", "--control-video", "frames", "--vace-strength", "0.5", *FEW[2:]]
    assert run(*text, *vace, "-o", "vace.gif", capsys=capsys)[::2] == (0, "")
    pair = ["-m", models / "wan_t2v_pair.safetensors", "--high-noise-steps", "1", "--high-noise-cfg-scale", "2"]
    assert run(*text, *pair, *FEW, "-o", "pair.png", capsys=capsys)[::2] == (0, "")
    with Image.open("vace.gif") as image:
        assert image.n_frames == 5, "as many as there are to follow"
    with Image.open("pair.png") as image:
        assert "High noise steps: 1" in image.info["parameters"]


def test_the_flags_are_sd_clis() -> None:
    names = {name for mode in (*FILMING, LOADING) for flag in flags(mode.declared) for name in flag.names}
    assert {
        "--video-frames", "--fps", "-i", "--init-img", "--end-img", "--control-video", "--vace-strength",
        "--moe-boundary", "--high-noise-steps", "--high-noise-cfg-scale", "--high-noise-sampling-method",
        "--high-noise-eta", "--high-noise-diffusion-model", "--clip_vision", "--t5xxl", "--flow-shift",
    } <= names  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["img2vid", "-p", "a"], 2, "Missing option '--init-img'"),
        (["txt2vid", "-p", "a", "--video-frames", "6"], 1, "try 5 or 9"),
        (["txt2vid", "-p", "a", "-o", "out.mkv"], 1, "out.mkv: .mkv is no video format; use .webp"),
        (["txt2vid", "-p", "a", "-o", "none/out.webp"], 1, "the directory does not exist"),
        (["txt2vid", "-p", "a", "-o", "out.mp4"], 1, "MP4 needs PyAV; run pip install"),
        (["txt2vid", "-p", "a", "--control-video", "photo.png"], 1, "is not a directory of pictures"),
        (["img2vid", "-p", "a", "-i", "photo.png", "--end-img", "none.png"], 1, "no such file"),
        (["txt2vid", "-p", "a"], 1, "this model draws images only; txt2vid needs a model for videos"),
    ],
)
def test_usage(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    found, out, err = run(*arguments, capsys=capsys)
    assert (found, out) == (status, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert not list(Path().glob("out*"))
