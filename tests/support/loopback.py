"""The loopback accelerator, loaded as a backend.

A backend that is loaded stays loaded, and this one would be every later model's default device: it is for processes of
their own, see children.
"""

from __future__ import annotations

from typing import Any

from .build_tree import built, read_cdef


class Loopback:
    """The loopback accelerator, loaded as a backend: its options and its books."""

    def __init__(self, devices: int = 1, **options: float) -> None:
        import cffi

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
