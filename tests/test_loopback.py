"""The loopback accelerator's own test, and its control interface as Python sees it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cffi
import pytest

from support.build_tree import NATIVE, built, read_cdef

TESTS = re.findall(r'^    \{"(\w+)", test_\w+\},$', (NATIVE / "test_loopback.cpp").read_text(), re.MULTILINE)


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
