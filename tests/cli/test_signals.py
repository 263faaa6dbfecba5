"""How the command ends when it is told to: one word, the right status, and no half-written file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

if os.name != "posix":
    pytest.skip("signals of POSIX", allow_module_level=True)

WORDS = {signal.SIGINT: b"sdcpp: interrupted\n", signal.SIGTERM: b"sdcpp: terminated\n"}
DRAW = ["txt2img", "-p", "a", "-W", "64", "-H", "64", "--seed", "1"]


def start(*arguments: object, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def check_end(
    process: subprocess.Popen[bytes],
    number: signal.Signals,
    folder: Path,
    drawn: bytes = b"",
    files: Sequence[str] = (),
) -> None:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert out == drawn
    assert err.endswith(WORDS[number])
    assert b"Traceback" not in err
    assert sorted(path.name for path in folder.iterdir()) == sorted(files), "nothing half-written"


# The interpreter's own start is over once the package's first line runs.
EARLY = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv[:] = ["-m", "txt2img", "--help"]
sys.orig_argv[:] = [sys.executable, "-m", "sdcpp_py", "txt2img", "--help"]
runpy.run_module("sdcpp_py", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("name", ["sdcpp_py.devices", "PIL.Image", "typer", "sdcpp_py.cli.drawing"])
def test_while_importing(name: str, tmp_path: Path) -> None:
    check_end(start("-c", EARLY.format(name=name), cwd=tmp_path), signal.SIGINT, tmp_path)


@pytest.mark.parametrize("number", WORDS, ids=lambda number: number.name)
def test_while_sampling(number: signal.Signals, checkpoint: Path, tmp_path: Path) -> None:
    process = start("-m", "sdcpp_py", *DRAW, "-m", checkpoint, "--steps", 10000, "-v", cwd=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if b"generating image" in line:
            break
    else:
        pytest.fail("it ended before it drew")
    time.sleep(0.1)
    process.send_signal(number)
    check_end(process, number, tmp_path)


# Stops at a moment of a run, in a function that is called then.
MOMENT = """
import os, signal, sys
import {module} as module
from sdcpp_py import cli, _command
owner = module{owner}
inner = owner.{name}
def stop(*args, **kwargs):
    {before}
    os.kill(os.getpid(), signal.SIGINT)
    return inner(*args, **kwargs)
owner.{name} = stop
sys.argv[:] = ["sdcpp", *sys.argv[1:]]
cli.run()
"""
MOMENTS = {
    "loading": ("sdcpp_py.engine.handle", "", "Run", "pass"),
    "saving": (
        "PIL.Image",
        ".Image",
        "save",
        "if hasattr(args[1], 'write'): return inner(*args, **kwargs)\n    open(args[1], 'wb').write(b'half')",
    ),
    "moving": ("pathlib", ".Path", "replace", "pass"),
    "reporting": ("sdcpp_py.cli.drawing", "", "_report", "[os.unlink(each) for each in os.listdir()]"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_at_other_moments(moment: str, checkpoint: Path, tmp_path: Path) -> None:
    module, owner, name, before = MOMENTS[moment]
    code = MOMENT.format(module=module, owner=owner, name=name, before=before)
    arguments = [*DRAW, "-m", checkpoint, "--steps", 1, "--report", "r.json"]
    drawn = b"output.png  seed 1\n" if moment == "reporting" else b""
    check_end(start("-c", code, *arguments, cwd=tmp_path), signal.SIGINT, tmp_path, drawn)


def test_a_batch_keeps_what_is_done(checkpoint: Path, tmp_path: Path) -> None:
    code = MOMENT.format(
        module="sdcpp_py.cli.drawing",
        owner="",
        name="save_all",
        before="if '_3' not in str(args[1]): return inner(*args)",
    )
    process = start("-c", code, *DRAW, "-m", checkpoint, "--steps", 1, "-b", 4, cwd=tmp_path)
    drawn = b"output.png  seed 1\noutput_2.png  seed 2\n"
    check_end(process, signal.SIGINT, tmp_path, drawn, ["output.png", "output_2.png"])


def test_who_ignores_ctrl_c_is_not_interrupted() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from sdcpp_py import _command; "
        "_command.end_on_signals(); assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN; "
        "assert signal.getsignal(signal.SIGTERM) == _command._end"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_leaves_signals_of_other_programs_alone() -> None:
    code = (
        "import signal, sys; sys.argv[:] = ['-m']; sys.orig_argv[:] = ['python', '-m', 'other']; "
        "before = signal.getsignal(signal.SIGINT); import sdcpp_py; import sdcpp_py.cli.commands; "
        "assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
