"""Tests in a process of their own, and the loopback accelerator in such a process.

A backend that is loaded stays loaded, and the loopback accelerator would be every later model's default device.
"""

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
from typing import Any

import cffi
from test_loopback import built, read_cdef


def in_child(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a new interpreter; its fixtures must be paths, text, numbers or lists of these."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        built("libggml-loopback.so")  # skips here, where pytest sees it
        given = {name: {"path": str(value)} if isinstance(value, Path) else value for name, value in fixtures.items()}
        code = "import sys, child; child.main(*sys.argv[1:])"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LOOPBACK_")}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-X", "faulthandler", "-c", code, test.__module__, test.__name__, json.dumps(given)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"

    return run


def main(module: str, name: str, given: str) -> None:
    """Run one test function, in the child."""
    fixtures = {
        key: Path(value["path"]) if isinstance(value, dict) else value for key, value in json.loads(given).items()
    }
    try:
        getattr(importlib.import_module(module), name).__wrapped__(**fixtures)
    except Exception as error:
        # The values that pytest would show.
        print("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))
        raise SystemExit(1) from None


class Loopback:
    """The loopback accelerator, loaded as a backend: its options and its books."""

    def __init__(self, devices: int = 1, **options: float) -> None:
        from sdcpp_py import engine

        path = built("libggml-loopback.so")
        self.ffi = cffi.FFI()
        self.ffi.cdef(read_cdef())
        engine.versions()  # the package's own ggml first, so that the module finds that one and not its build tree's
        self.lib: Any = self.ffi.dlopen(str(path))
        assert self.lib.loopback_device_count_set(devices) == 0
        engine.backend_load(str(path))
        # One thread: ggml's threads wait by spinning, which a busy machine punishes.
        self.set(threads=1, **options)

    def set(self, device: int = -1, **options: float) -> None:
        """Set options of the devices; refusals count from now on."""
        for name, value in options.items():
            assert self.lib.loopback_option_set(device, name.encode(), value) == 0, name

    def books(self, device: int = -1) -> dict[str, int]:
        """Return what the devices did since the last reset."""
        books = self.ffi.new("loopback_books*")
        assert self.lib.loopback_books_get(device, books) == 0
        return {name: getattr(books, name) for name, _ in self.ffi.typeof("loopback_books").fields}

    def clock(self) -> dict[str, float]:
        """Return the virtual clock since the last reset, in seconds."""
        clock = self.ffi.new("loopback_clock*")
        assert self.lib.loopback_clock_get(-1, clock) == 0
        return {name: getattr(clock, name) for name, _ in self.ffi.typeof("loopback_clock").fields}

    def get(self, option: str) -> float:
        """Return one option of the first device."""
        return float(self.lib.loopback_option_get(0, option.encode()))

    def reset(self) -> None:
        """Start the books anew."""
        self.lib.loopback_reset()
