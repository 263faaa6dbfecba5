"""The loopback accelerator's own test, and its control interface as Python sees it."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cffi
import pytest

NATIVE = Path(__file__).parent / "native"
TESTS = re.findall(r'^    \{"(\w+)", test_\w+\},$', (NATIVE / "test_loopback.cpp").read_text(), re.MULTILINE)


def read_cdef(name: str = "loopback.h") -> str:
    """Return the declarations of a file in the form that cffi takes."""
    text = (NATIVE / name).read_text()
    return text.split("// cdef begin", 1)[1].split("// cdef end", 1)[0]


@functools.cache
def probe(name: str) -> tuple[cffi.FFI, Any]:
    """Return a part of native/ that is built as a library of its own."""
    ffi = cffi.FFI()
    ffi.cdef(read_cdef(f"{name}.cpp"))
    return ffi, ffi.dlopen(str(built(f"lib{name}.so")))


def built(name: str) -> Path:
    """Return a file of the build tree of tests/native, or skip the test."""
    chosen = os.environ.get("SDCPP_TEST_BACKEND_DIR")
    root = NATIVE.parent.parent
    found = [Path(chosen) / name] if chosen else sorted(root.glob(f"build/*/tests/native/{name}"))
    found = [path for path in found if path.is_file()]
    if not found:
        pytest.skip(
            "the loopback accelerator is not built: configure with -DSDCPP_TEST_BACKEND=ON and build "
            "test_loopback, or set SDCPP_TEST_BACKEND_DIR to the directory that holds it"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def run(*command: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOOPBACK_")}
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=240, env=environment
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def test_table_is_found():
    assert len(TESTS) > 25


@pytest.mark.parametrize("name", TESTS)
def test_native(name):
    assert run(built("test_loopback"), name) == f"ok   {name}\n"


def test_header_is_plain_c():
    ffi = cffi.FFI()
    ffi.cdef(read_cdef())
    fields = dict(ffi.typeof("loopback_config").fields)
    assert {field.type.cname for field in fields.values()} == {"int64_t", "double"}
    assert ffi.typeof("loopback_books").fields


def test_every_function_is_exported():
    """The module can be opened directly, and knows every field of the configuration by its name."""
    script = f"""
import cffi, math
ffi = cffi.FFI()
ffi.cdef({read_cdef()!r})
library = ffi.dlopen({str(built("libggml-loopback.so"))!r})
for name in {re.findall(r"(loopback_[a-z_]+)[(]", read_cdef())!r}:
    assert callable(getattr(library, name)), name
assert library.loopback_api_version() == 1
assert library.loopback_device_count_set(3) == 0
assert library.loopback_device_count() == 0
config = ffi.new("loopback_config *")
library.loopback_config_default(config)
ffi.cdef("void * ggml_backend_init(void);")
assert ffi.dlopen({str(built("libggml-loopback.so"))!r}).ggml_backend_init()
assert library.loopback_device_count() == 3
for name, _ in ffi.typeof("loopback_config").fields:
    value = library.loopback_option_get(2, name.encode())
    assert value == getattr(config, name), name
    assert library.loopback_option_set(2, name.encode(), 1) == 0, name
books = ffi.new("loopback_books *")
assert library.loopback_books_get(-1, books) == 0
assert all(getattr(books, name) == 0 for name, _ in ffi.typeof("loopback_books").fields)
"""
    run(sys.executable, "-c", script)


def test_environment_configures_devices():
    script = f"""
import os
os.environ.update(LOOPBACK_DEVICES="1", LOOPBACK_MEMORY_TOTAL="1e6", LOOPBACK_HOST_BUFFER="0", LOOPBACK_FLOP_RATE="5")
import cffi
ffi = cffi.FFI()
ffi.cdef({read_cdef()!r} + "void * ggml_backend_init(void);")
library = ffi.dlopen({str(built("libggml-loopback.so"))!r})
assert library.ggml_backend_init()
assert library.loopback_device_count() == 1
config = ffi.new("loopback_config *")
assert library.loopback_config_get(0, config) == 0
assert (config.memory_total, config.host_buffer, config.flop_rate) == (1000000, 0, 5.0)
"""
    run(sys.executable, "-c", script)
