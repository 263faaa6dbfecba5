"""Tests in a process of their own, for what cannot be undone: a backend that is loaded stays loaded."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from .build_tree import ROOT, built


def in_child(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a new interpreter; its fixtures must be paths, text, numbers or lists of these."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        built("libggml-loopback.so")  # skips here, where pytest sees it
        given = {name: {"path": str(value)} if isinstance(value, Path) else value for name, value in fixtures.items()}
        code = "import sys, support.children; support.children.main(*sys.argv[1:])"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LOOPBACK_")}
        environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(ROOT)])  # a test's module is tests.FOLDER.NAME
        command = [sys.executable, "-X", "faulthandler", "-c", code, test.__module__, test.__name__, json.dumps(given)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.stdout == "", "the library wrote to standard output"

    return run


def main(module: str, name: str, given: str) -> None:
    """Run one test function, in the child."""
    sys.stdout = sys.stderr  # what tests print is no matter: only the library must not write there
    fixtures = {
        key: Path(value["path"]) if isinstance(value, dict) else value for key, value in json.loads(given).items()
    }
    try:
        getattr(importlib.import_module(module), name).__wrapped__(**fixtures)
    except Exception as error:
        # The values that pytest would show.
        print("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))
        raise SystemExit(1) from None
