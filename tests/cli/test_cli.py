"""The command, run as a user runs it: in a process of its own where that matters."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from PIL import Image

import sdcpp_py
from sdcpp_py import cli
from sdcpp_py.cli import drawing
from sdcpp_py.modes import TXT2IMG
from support.native_placement import NativePlacement

SMALL = ["-W", "64", "-H", "64", "--steps", "1", "--seed", "1"]


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_txt2img_writes_picture_and_report(
    checkpoint: Path, tmp_path: Path, native_placement: NativePlacement, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, report = tmp_path / "out.png", tmp_path / "r.json"
    arguments = ["txt2img", "-m", checkpoint, "-p", "a lovely cat", *SMALL, "-o", picture, "--report", report]
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, err) == (0, "")
    assert out == f"{picture}  seed 1\n"
    with Image.open(picture) as image:
        assert image.size == (64, 64)
        assert image.info["parameters"].startswith("a lovely cat\nSteps: 1, ")
    content = json.loads(report.read_text())
    assert content["seeds"] == [1]
    assert content["files"] == [str(picture)]
    assert content["timings"]["sampling"] > 0
    assert content["parameters"]["prompt"] == "a lovely cat"
    assert content["devices"][0]["name"]
    assert [row["module"] for row in content["plan"]["modules"] if row["bytes"]] == ["diffusion", "te", "vae"]
    assert content["memory"]["modules"] == content["transfer"]["modules"] == []
    first = picture.read_bytes()
    run(*arguments, capsys=capsys)
    assert picture.read_bytes() == first, "the same seed gives the same bytes"


def test_placement_options(
    checkpoint: Path, tmp_path: Path, native_placement: NativePlacement, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.json"
    placed = ["--backend", "te=cpu,all=fake0", "--params-backend", "cpu", "--pin-params", "vae=never,auto"]
    placed += ["--pin-budget", "0.25", "--max-vram", "2", "--stream-layers", "--report", report]
    status, _, err = run(
        "txt2img", "-m", checkpoint, "-p", "a", *SMALL, "-o", tmp_path / "a.png", *placed, capsys=capsys
    )
    assert (status, err) == (0, "")
    content = json.loads(report.read_text())
    assert content["plan"]["budget"]["parts"][-1]["bytes"] == 1 << 28
    planned = {row["module"]: row for row in content["plan"]["modules"]}
    assert (planned["te"]["runtime_device"], planned["diffusion"]["runtime_device"]) == ("CPU", "Fake0")
    assert planned["vae"]["reason"] == "pageable: pin_params is never"
    assert {row["module"]: row["pinned"] for row in content["memory"]["modules"]} == {
        "diffusion": True,
        "te": False,
        "vae": False,
    }
    assert content["transfer"]["total"]["copies"] == 9
    assert content["plan"]["device_budgets"] == [{"device": "Fake0", "bytes": 2 << 30, "detail": "given as max_vram"}]
    assert {row["module"]: row["streamed"] for row in content["plan"]["modules"] if row["bytes"]} == {
        "diffusion": True,
        "te": False,
        "vae": True,
    }
    assert [row["module"] for row in content["transfer"]["streams"]] == ["diffusion", "vae"]
    assert content["transfer"]["streams"][0]["advice"].startswith("resident: everything stays on Fake0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime-backend", "cuda0"], "error: --runtime-backend: device 'cuda0' is unknown; devices: CPU"),
        (
            ["--params-backend", "tee=cpu"],
            "--params-backend: module 'tee' is unknown; valid: diffusion, controlnet, te, vae, clip_vision,",
        ),
        (["--pin-params", "require"], "there is nothing to pin"),
        (["--pin-budget", "-1"], "--pin-budget must be a finite number"),
        (["--stream-layers"], "--stream-layers has nothing to stream"),
        (["--max-vram", "8"], "--max-vram has nothing to limit"),
        (["--max-vram", "nan", "--params-backend", "cpu"], "--max-vram must be a finite number"),
    ],
    ids=str,
)
def test_bad_placement_gets_one_line(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    native_placement: NativePlacement,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = run("txt2img", "-m", checkpoint, "-p", "a", *arguments, capsys=capsys)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_batch(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(
        "txt2img", "-m", checkpoint, "-p", "a", *SMALL, "-b", 2, "-o", tmp_path / "a.png", capsys=capsys
    )
    assert status == 0
    assert out.splitlines() == [f"{tmp_path}/a.png  seed 1", f"{tmp_path}/a_2.png  seed 2"]
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "a_2.png").read_bytes()


def test_a_batch_is_not_held(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held: list[weakref.ref[sdcpp_py.GeneratedImage]] = []
    alive: list[int] = []

    def save(images: list[sdcpp_py.GeneratedImage], files: list[Path]) -> None:
        held.extend(map(weakref.ref, images))
        alive.append(sum(each() is not None for each in held))

    monkeypatch.setattr(drawing, "save_all", save)
    report = tmp_path / "r.json"
    arguments = ["txt2img", "-m", checkpoint, "-p", "a", *SMALL, "-b", 3, "-o", tmp_path / "a.png", "--report", report]
    assert run(*arguments, capsys=capsys)[0] == 0
    assert alive == [1, 1, 1]
    assert json.loads(report.read_text())["seeds"] == [1, 2, 3]


BAD = {
    "missing model": (["-m", "none.safetensors"], "none.safetensors does not exist"),
    "directory": (["-m", "."], "is a folder"),
    "width 0": (["-W", "0"], "error: --width must be from 8"),
    "width negative": (["-W", "-8"], "error: --width must be from 8"),
    "width odd": (["-W", "100"], "multiple of 8"),
    "width huge": (["-W", "100000"], "width must be from 8 to 16384"),
    "steps": (["--steps", "0"], "steps must be from 1"),
    "cfg": (["--cfg-scale", "nan"], "error: --cfg-scale must be a finite number"),
    "sampler": (["--sampler", "eular"], "valid: euler, euler_a"),
    "scheduler": (["--scheduler", "kar"], "valid: discrete"),
    "batch": (["-b", "0"], "--batch-count must be from 1"),
    "seed": (["-s", "99999999999999999999"], "seed must be from -1"),
    "sigmas": (["--sigmas", "1,2"], "sigmas must descend"),
    "batch huge": (["-b", "3000000"], "--batch-count must be from 1 to 1024, not 3000000"),
    "tile overlap": (["--vae-tile-overlap", "0.9"], "--vae-tile-overlap must be a finite number from 0 to 0.5"),
    "skipped layer": (["--skip-layers", "-1", "--slg-scale", "2"], "--skip-layers[0] must be from 0"),
    "cache mode": (["--cache-mode", "x"], "--cache-mode 'x' is unknown; valid: easycache"),
    "type rule's type": (["--tensor-type-rules", "vae=q9"], "--tensor-type-rules: type 'q9' is unknown; valid: f32"),
    "person": (["--pm-id-images-dir", "none"], "--pm-id-images-dir 'none' is not a directory of pictures"),
    "embedding": (["--embedding", "x=none.safetensors"], "embedding x: none.safetensors does not exist"),
    "output directory": (["-o", "none/out.png"], "does not exist"),
    "output suffix": (["-o", "out.txt"], "is no picture format"),
    "output not writable": (["-o", "/proc/out.png"], "cannot be written"),
    "output folder": (["-o", ".."], "no suffix is no picture format"),
    "output device": (["-o", "device.png"], "device.png is no regular file"),
    "output protected": (["-o", "protected.png"], "protected.png is write-protected"),
    "second output": (["-o", "taken.png", "-b", "2"], "taken_2.png is a directory"),
    "output icon": (["-o", "out.ico"], "ICO has room for icons only"),
    "output mode": (["-o", "out.xbm"], "this Pillow cannot write XBM (cannot write mode RGB as XBM)"),
    "output size": (["-o", "out.webp", "-W", "16384", "-H", "8"], "cannot write WEBP of 16384x8"),
    "output name": (["-o", f"{'x' * 250}.png"], "cannot be written (File name too long)"),
    "output loop": (["-o", "loop.png"], "loop.png cannot be written"),
    "report protected": (["--report", "protected.png"], "--report protected.png is write-protected"),
    "report folder": (["--report", "folder"], "--report folder is a directory"),
    "report and picture": (["--report", "out.png", "-o", "out.png"], "is what -o writes"),
    "pictures that nothing holds": (["-W", "16384", "-H", "16384", "-b", "1024"], "--batch-count may be at most"),
    "multiplier": (["--lora", "x.safetensors:nan"], "--lora 'x.safetensors:nan': a strength must be a finite number"),
    "report directory": (["--report", "none/r.json"], "the directory does not exist"),
    "preview path alone": (["--preview-path", "p.png"], "--preview-path has no effect without --preview"),
    "preview and picture": (
        ["--preview", "proj", "--preview-path", "out_2.png", "-b", "2", "-o", "out.png"],
        "--preview-path out_2.png is what -o writes",
    ),
    "control image": (["--control-image", "none.png"], "not a picture"),
    "lora": (["--lora", "none.safetensors:0.5"], "LoRA: none.safetensors does not exist"),
    "hires model": (["--hires-model", "none.pth"], "error: --hires-model: none.pth does not exist"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_gets_one_line(
    kind: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "protected.png").touch(0o444)
    (tmp_path / "device.png").symlink_to(os.devnull)
    (tmp_path / "loop.png").symlink_to("loop.png")
    for folder in ("folder", "taken_2.png"):
        (tmp_path / folder).mkdir()
    there = sorted(tmp_path.iterdir())
    arguments, message = BAD[kind]
    status, out, err = run("txt2img", "-m", checkpoint, "-p", "a", *SMALL, *arguments, capsys=capsys)
    assert status == 1
    assert message in err
    assert err.startswith("sdcpp: error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(tmp_path.iterdir()) == there, "nothing half-written"


def test_undecodable_arguments(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdcpp_py.cli", "txt2img", "-p"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    prompt = subprocess.run(
        [*map(os.fsencode, command), b"\xff", b"-m", os.fsencode(checkpoint)],
        capture_output=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert prompt.returncode == 1
    assert b"prompt is not valid Unicode" in prompt.stderr
    path = subprocess.run(
        [*map(os.fsencode, command), b"a", b"-m", b"\xff.safetensors"],
        capture_output=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert path.returncode == 1
    assert b"does not exist" in path.stderr
    assert b"Traceback" not in path.stderr + prompt.stderr


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run("txt2img", capsys=capsys)
    assert status == 2
    assert "--prompt" in err
    assert "Usage: " in err
    status, _, err = run("nonsense", capsys=capsys)
    assert status == 2
    status, out, _ = run("--version", capsys=capsys)
    assert (status, out) == (0, f"sdcpp {sdcpp_py.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sigmas", "1,x"], "--sigmas: needs numbers separated by commas: 'x' is not a number"),
        (["--skip-layers", "1,x", "--slg-scale", "2"], "--skip-layers: needs numbers separated by commas"),
        (["--skip-layers", "1.5", "--slg-scale", "2"], "'1.5' is not a whole number"),
        (["--skip-layers", "nan", "--slg-scale", "2"], "'nan' is not a whole number"),
        (["--skip-layers", "1"], "--skip-layers: needs --slg-scale too"),
        (["--slg-scale", "2"], "--slg-scale: needs --skip-layers too"),
        (["--cache-option", "threshold=1"], "--cache-option: needs --cache-mode too"),
        (["--cache-mode", "ucache", "--cache-option", "x=1"], "'x=1' is none of threshold=, start=, end="),
        (["--cache-mode", "ucache", "--cache-option", "start"], "'start' is none of"),
        (["--scm-policy", "x", "--cache-mode", "dbcache"], "--scm-policy: 'x' is neither static nor dynamic"),
        (["--vae-tile-size", "8x8x8"], "'8x8x8' is not N[xN]"),
        (["--hires", "2x"], "--hires: '2x' is not a number"),
        (["--tensor-type-rules", "vae"], "--tensor-type-rules: 'vae' is no PATTERN=TYPE"),
        (["--tensor-type-rules", "(=f16"], "--tensor-type-rules: '(' is no regular expression"),
        (["--embedding", "x=a.pt", "--embedding", "x=b.pt"], "--embedding: 'x' is given twice: a.pt and b.pt"),
        (["--lora", ":0.5"], "--lora: ':0.5' names no file"),
        (["--hires-width", "1.5"], "--hires-width"),
        (["--pin-budget", "much"], "--pin-budget"),
        (["--steps", "x"], "--steps"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_read_is_a_usage_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run("txt2img", "-p", "a", *arguments, capsys=capsys)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("Usage: ")


def test_lora_paths_and_strengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file:0.5").touch()
    option = TXT2IMG.declared["loras"]
    for text, path, multiplier, te in [
        ("a.safetensors", "a.safetensors", 1.0, None),
        ("a.safetensors:0.8", "a.safetensors", 0.8, None),
        ("C:\\x.safetensors:0.8", "C:\\x.safetensors", 0.8, None),
        ("C:\\x.safetensors", "C:\\x.safetensors", 1.0, None),
        ("a:b.safetensors", "a:b.safetensors", 1.0, None),
        ("a:b.safetensors:-.5", "a:b.safetensors", -0.5, None),
        ("a:1e-1", "a", 0.1, None),
        ("file:0.5", "file:0.5", 1.0, None),
        ("file:0.5:2", "file:0.5", 2.0, None),
        ("a:1_0", "a:1_0", 1.0, None),
        ("C:\\x.safetensors:0.5:0.8", "C:\\x.safetensors", 0.8, 0.5),
        ("a.safetensors:unet=0.8:te=0", "a.safetensors", 0.8, 0.0),
        ("|high_noise|a.gguf:1:2", "a.gguf", 2.0, 1.0),
    ]:
        (lora,) = option.kind.read(text, option)
        assert (lora.path, lora.multiplier, lora.te_multiplier) == (path, multiplier, te), text
        assert lora.is_high_noise == text.startswith("|")


COMPLETIONS = {
    "--sampler eu": ["euler", "euler_a"],
    "--sampling-method dd": ["ddim_trailing"],
    "--type q8": ["q8_0"],
    "--scm-policy ": ["dynamic", "static"],
    "--cache-option thr": ["threshold="],
    "--pin-params ": ["auto", "never", "require"],
    "--runtime-backend c": ["cpu"],
    "--schedul": ["--scheduler"],
    "--prompt x": [],
}


@pytest.mark.parametrize("typed", COMPLETIONS)
def test_completion(typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sdcpp", "txt2img", *typed.split(" ")]
    monkeypatch.setenv("_SDCPP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setattr(sys, "argv", ["sdcpp"])
    cli.main([])
    assert sorted(capsys.readouterr().out.split()) == COMPLETIONS[typed]


def test_completion_can_be_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Else it is what the tests were started from, which may be no shell.
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "bash"))
    status, out, err = run("--show-completion", "bash", capsys=capsys)
    assert (status, err) == (0, "")
    assert "_SDCPP_COMPLETE=complete_bash" in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_standard_output_that_takes_nothing() -> None:
    command = [sys.executable, "-m", "sdcpp_py", "devices"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "sdcpp: error: standard output cannot be written (No space left on device)\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_disk_leaves_no_half_of_a_picture(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(self: Image.Image, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        if path.name.startswith(".a_2"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sdcpp_py.GeneratedImage, "save", save)
    monkeypatch.setattr("sdcpp_py.images._try_format", lambda *_: None)
    arguments = ["txt2img", "-m", checkpoint, "-p", "a", *SMALL, "-b", 3, "-o", tmp_path / "a.png"]
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, out) == (1, f"{tmp_path}/a.png  seed 1\n")
    assert err == f"sdcpp: error: {tmp_path}/a_2.png cannot be written (No space left on device)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_link_stays_one(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "a.png", tmp_path / "folder" / "b.png"
    link.symlink_to(target)
    status, _, err = run("txt2img", "-m", checkpoint, "-p", "a", *SMALL, "-o", link, capsys=capsys)
    assert (status, err) == (0, "")
    assert link.is_symlink()
    with Image.open(target) as image:
        assert image.size == (64, 64)


def test_help_names_every_option_of_txt2img(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("txt2img", "--help", capsys=capsys)
    assert status == 0
    for flag in [*drawing.DRAWING_FLAGS["txt2img"], *drawing.LOADING_FLAGS]:
        assert all(name in out for name in flag.names), flag.names
    for option in ("--output", "--report", "--verbose"):
        assert option in out


def test_help_has_headings_ranges_and_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = run("txt2img", "--help", capsys=capsys)
    headings = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "Prompt:", "Sampling:", "Guidance:", "Picture:", "Caching:", "LoRA:", "Decoding:", "Second pass:",
        "ControlNet:", "Persons:", "Preview:", "Model files:", "Placement:", "Engine:", "Families:", "Output:",
        "Options:",
    ]  # fmt: skip
    said = " ".join(out.split())
    assert "--steps INT Sampling steps (1 to 10000; default: 20)." in said
    assert "Strength of the ControlNet (0 to 100; default: 0.9)." in said
    assert "--no-vae-decode-only Do not wait with the VAE's encoder until a picture goes in." in said
    assert "[default: output.png]" in said
    assert out.isascii()
    assert max(map(len, out.splitlines())) <= 80


def test_help_does_not_load_the_engine() -> None:
    code = (
        "import sys; from sdcpp_py import cli; status = cli.main(['txt2img', '--help']); "
        "sys.exit(status or ('sdcpp_py._engine' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--cfg-scale" in done.stdout


def test_devices(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("devices", capsys=capsys)
    assert status == 0
    assert out.splitlines()[0].startswith("device  kind")
    assert any(line.startswith("CPU ") for line in out.splitlines())
    status, out, _ = run("devices", "--json", capsys=capsys)
    assert json.loads(out)[0].keys() >= {"name", "kind", "memory_total", "host_buffer_type"}


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("doctor", capsys=capsys)
    assert status == 0
    assert "stable-diffusion.cpp" in out
    status, out, _ = run("doctor", "--json", "--names", capsys=capsys)
    report = json.loads(out)
    assert report["problems"] == []
    assert "euler" in report["names"]["sampler"]


def test_console_script() -> None:
    script = Path(sys.executable).with_name("sdcpp")
    for command in ([script], [sys.executable, "-m", "sdcpp_py"], [sys.executable, "-m", "sdcpp_py.cli"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"sdcpp {sdcpp_py.__version__}\n"
