"""Backends and their devices, as the engine lists them."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

from ..backends import cuda
from ..errors import BackendError
from .library import library, log, row_values
from .names import versions
from .runtime import Run

MOST_DEVICES = 256


def backend_load(path: str) -> None:
    """Load one backend module from a file.

    Raises:
        BackendError: it is no backend module, or one for another version of ggml.
    """
    _, lib = library()
    with Run() as run:
        status = lib.sdcpp_backend_load(run.native, os.fsencode(path))
        run.check(status, BackendError, f"{path} is not a backend module for this engine; check its version")


@functools.cache
def cuda_backend() -> cuda.Backend:
    """Return what is installed of the CUDA backend, after loading the backends on the first call."""
    _, lib = library()
    engine = Path(versions()["library"] or "").parent
    found = cuda.find(engine)
    if found.problem:
        log.warning("%s", found.problem)
    # First, so that devices come in the same order as from a module beside the engine, which the engine loads itself.
    if found.usable and found.module is not None and found.module.parent != engine:
        with Run() as run:
            lib.sdcpp_backend_load(run.native, os.fsencode(found.module))
    with Run() as run:
        run.check(lib.sdcpp_backends_load(run.native), BackendError, "the backends cannot be loaded")
    return found


def device_list() -> list[dict[str, Any]]:
    """Return every device with its name, kind, backend, module, host buffer type, memory in bytes and features.

    A device whose memory cannot be asked for says why as its ``problem``.
    """
    ffi, lib = library()
    cuda_backend()
    devices = ffi.new("sdcpp_device_t[]", MOST_DEVICES)
    count = ffi.new("int*")
    found = []
    with Run() as run:
        run.check(lib.sdcpp_devices(run.native, devices, len(devices), count), BackendError, "no device can be listed")
        for device in devices[0 : count[0]]:
            entry = row_values(device)
            pairs = entry["features"].split(",")
            found.append(
                {
                    **entry,
                    "features": dict(pair.split("=", 1) for pair in pairs if "=" in pair),
                    "problem": entry["problem"] and re.sub(r"^\S+:\d+: ", "", entry["problem"]),
                }
            )
    return found


@functools.cache
def bus_rate(device: str) -> float | None:
    """Return the bytes a second that arrive on a device from its host buffer type, measured once.

    Args:
        device: its name.

    Returns:
        The rate; None where the device has no host buffer type, or could not be measured.
    """
    ffi, lib = library()
    rate = ffi.new("double*")
    with Run(quiet=True) as run:
        lib.sdcpp_device_bus_rate(run.native, device.encode(), rate)
    return float(rate[0]) or None
