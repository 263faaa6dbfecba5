"""What type checkers and ``help()`` see of the options."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
import typing
from pathlib import Path

import sdcpp_py
from sdcpp_py.modes import LOADING, TXT2IMG

RIGHT = """
import sdcpp_py

with sdcpp_py.StableDiffusion("model.safetensors", vae="v", threads=2, runtime_backend={"te": "cpu"}) as sd:
    images = sd.txt2img("a cat", steps=4, cfg_scale=7, loras={"a": 0.5}, vae_tiling=sdcpp_py.Tiling(), hires=None)
    reveal_type(images)
    sd.txt2img("a", sigmas=[1.0, 0.0], cache="ucache", progress=lambda event: None)
"""
WRONG = {
    'sd.txt2img("a", stepz=4)': 'Unexpected keyword argument "stepz" for "txt2img" of "StableDiffusion"; did you mean',
    'sd.txt2img("a", steps="4")': 'Argument "steps" to "txt2img" of "StableDiffusion" has incompatible type "str"',
    'sd.txt2img("a", hires=2.0)': 'Argument "hires" to "txt2img"',
    "sd.txt2img()": 'Missing positional argument "prompt"',
    'sdcpp_py.StableDiffusion("m", vea="v")': 'Unexpected keyword argument "vea" for "StableDiffusion"',
    'sdcpp_py.StableDiffusion("m", threads="2")': 'Argument "threads" to "StableDiffusion"',
    "sdcpp_py.Hires(scal=2.0)": 'Unexpected keyword argument "scal" for "Hires"',
}


def test_mypy_sees_every_option(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    lines = "\n".join(WRONG)
    program.write_text(
        f"{RIGHT}\nsd: sdcpp_py.StableDiffusion\n{lines}\n".replace("\nsd: sdcpp_py.StableDiffusion", "")
    )
    # With the settings and the cache of the package's own check, which is strict.
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(sdcpp_py.__file__).parent.parent)
    first = len(RIGHT.splitlines()) + 2
    said = [line.split("program.py:", 1)[1] for line in done.stdout.splitlines() if "program.py:" in line]
    assert any('Revealed type is "sdcpp_py.images.Images"' in line for line in said), done.stdout + done.stderr
    errors = [line for line in said if " error: " in line]
    assert len(errors) == len(WRONG), done.stdout
    for number, (code, message) in enumerate(WRONG.items(), first):
        assert any(line.startswith(f"{number}: error: ") and message in line for line in errors), (code, done.stdout)


def test_help_shows_options_with_their_ranges() -> None:
    said = pydoc.render_doc(sdcpp_py.StableDiffusion.txt2img, renderer=pydoc.plaintext)
    assert "steps: int | None = None" in said
    assert "steps: sampling steps (1 to 10000; default: 20)." in said
    assert "seed: seed of the first image, the others count up; -1 draws one (-1 to 2**63 - 1; default: -1)." in said
    assert "ArgumentError: a value is unknown" in said
    loading = pydoc.render_doc(sdcpp_py.StableDiffusion, renderer=pydoc.plaintext)
    assert "threads: CPU threads, at most four for each CPU that this process may use (1 to 4096; default: " in loading


def test_signatures_have_every_option() -> None:
    drawing = inspect.signature(sdcpp_py.StableDiffusion.txt2img).parameters
    assert list(drawing) == ["self", *TXT2IMG.declared]
    assert drawing["prompt"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert drawing["seed"].kind is inspect.Parameter.KEYWORD_ONLY
    assert drawing["seed"].default == -1
    assert list(inspect.signature(sdcpp_py.StableDiffusion).parameters) == [*LOADING.declared]
    hints = typing.get_type_hints(sdcpp_py.StableDiffusion.txt2img, vars(sdcpp_py.pipeline))
    assert hints["steps"] == int | None
