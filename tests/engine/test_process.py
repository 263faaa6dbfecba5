"""The process around the engine: its end, and its children."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

START = """
import os, sys, threading, time
import sdcpp_py
sd = sdcpp_py.StableDiffusion({checkpoint!r})
small = dict(width=64, height=64, steps=2, seed=1, progress=False)
long = dict(width=64, height=64, steps=5000, seed=1)
begun = threading.Event()
"""


def run(checkpoint: Path, code: str) -> str:
    """Run code in a process of its own that must end well, and return what it printed."""
    code = START.format(checkpoint=str(checkpoint)) + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_exit_while_a_daemon_thread_draws(checkpoint: Path) -> None:
    run(
        checkpoint,
        """
def draw():
    while True:
        sd.txt2img("a", **long, progress=lambda *_: begun.set())
threading.Thread(target=draw, daemon=True).start()
begun.wait()
""",
    )


def test_exit_while_daemon_threads_wait_and_load(checkpoint: Path) -> None:
    run(
        checkpoint,
        """
def draw(model):
    model.txt2img("a", **long, progress=lambda *_: begun.set())
def load():
    while True:
        sdcpp_py.StableDiffusion(PATH, progress=lambda *_: begun.set())
other = sdcpp_py.StableDiffusion(PATH)
for target, args in ((draw, (sd,)), (draw, (other,)), (load, ())):
    threading.Thread(target=target, args=args, daemon=True).start()
begun.wait()
time.sleep(0.2)
""".replace("PATH", repr(str(checkpoint))),
    )


def test_exit_while_daemon_threads_ask_for_reports(checkpoint: Path) -> None:
    """Between two calls they are in Python, where they find their model closed."""
    run(
        checkpoint,
        """
def ask():
    while True:
        sd.memory_report()
        begun.set()
for _ in range(3):
    threading.Thread(target=ask, daemon=True).start()
begun.wait()
""",
    )


def test_exit_waits_for_a_thread_that_is_no_daemon(checkpoint: Path) -> None:
    out = run(
        checkpoint,
        """
def draw():
    print(len(sd.txt2img("a", **{**small, "steps": 20})[0].tobytes()))
threading.Thread(target=draw).start()
""",
    )
    assert out == f"{64 * 64 * 3}\n"


def test_open_objects_at_exit(checkpoint: Path) -> None:
    assert run(checkpoint, 'sd.txt2img("a", **small); print("drawn")') == "drawn\n"


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_forked_child_gets_an_error(checkpoint: Path) -> None:
    out = run(
        checkpoint,
        """
import gc, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork itself, with threads
warnings.simplefilter("error", ResourceWarning)
before = sd.txt2img("a", **small)[0].tobytes()
thread = threading.Thread(target=sd.txt2img, args=("a",), kwargs={**long, "progress": lambda *_: begun.set()})
threading.excepthook = lambda *_: None
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    for use in (lambda: sd.txt2img("a", **small), sdcpp_py.devices, sd.memory_report, sdcpp_py.StableDiffusion):
        try:
            use()
        except (sdcpp_py.BackendError, sdcpp_py.ClosedError) as error:
            print(type(error).__name__, flush=True)
    print(sdcpp_py.doctor()["problems"], flush=True)
    sd.cancel()
    sd.close()
    del sd
    gc.collect()
    sys.exit(7)
status = os.waitpid(child, 0)[1]
print(os.waitstatus_to_exitcode(status))
sd.cancel()
thread.join()
print(sd.txt2img("a", **small)[0].tobytes() == before)
""",
    )
    lines = out.splitlines()
    assert [line.removesuffix("Error") for line in lines[:4]] == ["Backend"] * 4
    assert "'spawn' method" in lines[4]
    assert lines[5:] == ["7", "True"]


def test_a_child_forked_before_the_engine_was_used_works(checkpoint: Path) -> None:
    code = f"""
import os, sys, sdcpp_py
from sdcpp_py import engine
engine.library()
if os.fork() == 0:
    sd = sdcpp_py.StableDiffusion({str(checkpoint)!r})
    print(len(sd.txt2img("a", width=64, height=64, steps=1, progress=False)[0].tobytes()))
    sd.close()
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (f"{64 * 64 * 3}\n0\n", "")
