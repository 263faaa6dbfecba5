"""What the build tree holds for the tests: the loopback accelerator and the parts of native/ built alone."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cffi

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native"


def read_cdef(name: str = "loopback.h") -> str:
    """Return the declarations of a file of tests/native in the form that cffi takes."""
    text = (NATIVE / name).read_text()
    return text.split("// cdef begin", 1)[1].split("// cdef end", 1)[0]


def built(name: str) -> Path:
    """Return a file of the build tree of tests/native, or skip the test."""
    chosen = os.environ.get("SDCPP_TEST_BACKEND_DIR")
    found = [Path(chosen) / name] if chosen else sorted(ROOT.glob(f"build/*/tests/native/{name}"))
    found = [path for path in found if path.is_file()]
    if not found:
        import pytest

        pytest.skip(
            "the loopback accelerator is not built: configure with -DSDCPP_TEST_BACKEND=ON and build "
            "test_loopback, or set SDCPP_TEST_BACKEND_DIR to the directory that holds it"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


@functools.cache
def probe(name: str) -> tuple[cffi.FFI, Any]:
    """Return a part of native/ that is built as a library of its own."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(read_cdef(f"{name}.cpp"))
    return ffi, ffi.dlopen(str(built(f"lib{name}.so")))
