"""What users of sd-cli type: it works here, or one line says what does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from PIL import Image

from sdcpp_py import cli
from sdcpp_py.cli.commands import app
from sdcpp_py.cli.sd_cli import FLAGS, command_for
from support.build_tree import ROOT
from support.native_placement import NativePlacement

THEIRS = ROOT / "vendor" / "stable-diffusion.cpp" / "examples" / "cli" / "README.md"


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def ours() -> set[str]:
    group = typer.main.get_command(app)
    context = group.make_context("sdcpp", ["devices"])
    names = {"-h", "--help"}
    for command in group.commands.values():  # type: ignore[attr-defined]
        names |= {opt for param in command.get_params(context) for opt in param.opts}
    return names


@pytest.mark.skipif(not THEIRS.is_file(), reason="the engine's source is not unpacked")
def test_every_flag_of_sd_cli_is_known() -> None:
    lines = re.findall(r"^  ((?:-\w, )?--[\w-]+)", THEIRS.read_text(encoding="utf-8"), re.MULTILINE)
    theirs = {name for line in lines for name in line.split(", ")}
    theirs |= set(re.findall(r"^  (-\w), ", THEIRS.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(theirs) > 130, "the expressions find what they are for"
    named = {name for each in FLAGS for name in each.names}
    assert theirs - ours() - named == set()
    assert named - theirs == set(), "the table has no flag that sd-cli does not have"
    assert all(bool(each.says) != bool(each.flag) for each in FLAGS)


def test_the_page_has_the_table() -> None:
    rows = []
    for each in FLAGS:
        here = f"`{each.flag} {each.value}`" if each.flag else each.says
        rows.append(f"| {', '.join(f'`{name}`' for name in each.names)} | {here} |")
    assert "\n".join(rows) in (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8"), "\n".join(rows)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("-M img_gen -p x", "-M: name the command first, without -M: sdcpp txt2img."),
        ("-p x -i a.png --mask=b.png", "-p: name the command first: sdcpp inpaint."),
        ("--mode=film -p x", "--mode: each mode is a command: img_gen is txt2img, img2img,"),
        ("--nonsense", "No such option: --nonsense"),
        ("txt2img -p x -M img_gen", "-M: leave it away: sdcpp txt2img is that mode."),
        ("txt2img -M vid_gen -i a.png", "-M: each mode is a command, and this one is sdcpp img2vid;"),
        ("txt2img -p x --video-frames 9", "sdcpp txt2img takes no --video-frames; txt2vid, img2vid do."),
        ("txt2img --upscale-model up.pth", "--upscale-model: draw first, then: sdcpp upscale -i PICTURE"),
        ("txt2vid -p x --high-noise-guidance 3", "--high-noise-guidance: no video model"),
        ("convert --vae-on-cpu", "sdcpp convert takes no --vae-on-cpu; txt2img, img2img,"),
        ("info --image a.png", "--image: sdcpp info FILE says what a picture carries."),
        ("txt2img -p x --step 4", "No such option: --step"),
    ],
)
def test_what_is_no_flag_is_answered_in_a_line(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(*typed.split(), capsys=capsys)
    assert (status, out) == (2, "")
    assert said in " ".join(line for line in err.splitlines() if "Usage" not in line and "Try" not in line)


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ("", "txt2img"),
        ("-i a", "img2img"),
        ("-r a -r b", "edit"),
        ("-M vid_gen", "txt2vid"),
        ("--mode vid_gen --init-img a", "img2vid"),
        ("-Mupscale -i a", "upscale"),
        ("-M convert", "convert"),
        ("-M metadata", "info"),
        ("-M none", None),
    ],
)
def test_the_command_of_a_mode(typed: str, command: str | None) -> None:
    assert command_for(typed.split()) == command


def test_flags_of_placing_stand_for_specs(
    checkpoint: Path, tmp_path: Path, native_placement: NativePlacement, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.json"
    typed = ["txt2img", "-m", checkpoint, "-p", "a", "-W", 64, "-H", 64, "--steps", 1, "-o", tmp_path / "a.png"]
    typed += ["--offload-to-cpu", "--clip-on-cpu", "--vae-on-cpu", "--backend", "fake0", "--report", report]
    assert run(*typed, capsys=capsys)[::2] == (0, "")
    rows = {row["module"]: row for row in json.loads(report.read_text())["plan"]["modules"]}
    assert {name: rows[name]["runtime_device"] for name in ("diffusion", "te", "vae")} == {
        "diffusion": "Fake0",
        "te": "CPU",
        "vae": "CPU",
    }
    assert {rows[name]["params_device"] for name in ("diffusion", "te", "vae")} == {"CPU"}
    status, _, err = run(*typed, "--params-backend", "fake0", capsys=capsys)
    assert (status, "--params-backend: the default is assigned twice" in err) == (1, True)


def test_files_are_numbered_and_hold_no_text(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["txt2img", "-m", checkpoint, "-p", "a", "-W", 64, "-H", 64, "--steps", 1, "-s", 1, "-b", 2]
    out = run(*typed, "-o", tmp_path / "a_%03d.png", "--output-begin-idx", 9, capsys=capsys)
    assert out[::2] == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_009.png", "a_010.png"]
    assert run(*typed[:-2], "-o", tmp_path / "%d.png", "--disable-image-metadata", capsys=capsys)[0] == 0
    with Image.open(tmp_path / "0.png") as without, Image.open(tmp_path / "a_009.png") as with_text:
        assert without.info == {}
        assert "parameters" in with_text.info
        assert without.tobytes() == with_text.tobytes()
    status, _, err = run("txt2img", "-p", "a", "--output-begin-idx", 3, capsys=capsys)
    assert (status, err.count("\n")) == (1, 1)
    assert "no effect without %d" in err
