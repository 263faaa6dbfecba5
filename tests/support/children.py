"""Tests in a process of their own, for what cannot be undone: a backend that is loaded stays loaded."""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .build_tree import ROOT, built


class _Parent:
    """An interpreter that has imported what tests need, and forks for each: most take less time than importing."""

    def __init__(self) -> None:
        code = "import support.children; support.children.serve()"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        atexit.register(self.close)

    def run(self, request: Mapping[str, Any]) -> int:
        """Return the exit status of a child; the child is ended where waiting for it is."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        pid = int(self.process.stdout.readline())
        try:
            return int(self.process.stdout.readline())
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            self.process.stdout.readline()
            raise

    def close(self) -> None:
        """End the interpreter."""
        self.process.communicate()


_parent: _Parent | None = None


def in_child(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a new process; its fixtures must be paths, text, numbers or lists of these."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        global _parent
        built("libggml-loopback.so")  # skips here, where pytest sees it
        if _parent is None or _parent.process.poll() is not None:
            _parent = _Parent()
        with tempfile.TemporaryDirectory() as folder:
            status = _parent.run({
                "module": test.__module__,
                "name": test.__name__,
                "fixtures": {
                    name: {"path": str(value)} if isinstance(value, Path) else value for name, value in fixtures.items()
                },
                "environment": {name: value for name, value in os.environ.items() if not name.startswith("LOOPBACK_")},
                "cores": list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
                "directory": str(Path.cwd()),
                "outputs": [f"{folder}/out", f"{folder}/err"],
            })  # fmt: skip
            out, err = (Path(folder, name).read_text(errors="replace") for name in ("out", "err"))
        assert status == 0, f"exit status {status}\n{out}{err}"
        assert out == "", "the library wrote to standard output"

    return run


def serve() -> None:
    """Fork for each test that is asked for, and say as who and how it ended; a child ends as interpreters do."""
    # What most tests import.
    for name in ("numpy", "pytest", "sdcpp_py", "support.placed_model", "support.streaming"):
        importlib.import_module(name)

    while line := sys.stdin.readline():
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            for descriptor, path in ((0, os.devnull), *enumerate(request["outputs"], 1)):
                opened = os.open(path, os.O_RDWR | os.O_CREAT)
                os.dup2(opened, descriptor)
                os.close(opened)
            os.environ.clear()
            os.environ.update(request["environment"])
            if request["cores"]:
                os.sched_setaffinity(0, request["cores"])
            os.chdir(request["directory"])
            main(request["module"], request["name"], request["fixtures"])
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def main(module: str, name: str, given: Mapping[str, Any]) -> None:
    """Run one test function, in the child."""
    sys.stdout = sys.stderr  # what tests print is no matter: only the library must not write there
    fixtures = {key: Path(value["path"]) if isinstance(value, dict) else value for key, value in given.items()}
    try:
        getattr(importlib.import_module(module), name).__wrapped__(**fixtures)
    except Exception as error:
        # The values that pytest would show.
        print("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))
        raise SystemExit(1) from None
