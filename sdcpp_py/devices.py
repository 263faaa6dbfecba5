"""Devices that can compute or hold weights, and what an installation has and lacks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from . import engine
from ._version import __version__
from .errors import SdcppError
from .host_threads import default_threads


@dataclass(frozen=True)
class Device:
    """One device of a loaded backend.

    Attributes:
        name: what specs call it, such as ``CPU`` or ``CUDA0``.
        description: the maker's name.
        kind: ``cpu``, ``gpu``, ``igpu`` or ``accel``.
        memory_total: bytes, 0 when the backend does not tell.
        memory_free: bytes, at the time of the call.
        host_buffer_type: name of the device's own host buffer type (page-locked memory for CUDA), or None.
        backend: name of the backend that serves it.
        module_path: file of the backend module, or None when it cannot be told.
        features: the backend's own features, name to value, such as ``{"AVX2": "1"}``.
        memory_reserve: bytes that a model leaves free when ``max_vram`` is not given.
        problem: why the memory of the device is not known, or None; the device cannot be used then.
    """

    name: str
    description: str
    kind: str
    memory_total: int
    memory_free: int
    host_buffer_type: str | None
    backend: str
    module_path: str | None
    features: dict[str, str] = field(hash=False)
    memory_reserve: int
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)


def devices() -> list[Device]:
    """Return every device, after loading the backends on the first call.

    Raises:
        BackendError: the compiled engine cannot be loaded.
    """
    return [Device(**entry) for entry in engine.device_list()]


def choices() -> dict[str, tuple[str, ...]]:
    """Return the valid names of each option that takes a name, as the engine knows them."""
    return {
        "sampler": engine.enum_names("sample_method"),
        "scheduler": engine.enum_names("scheduler"),
        "weight_type": engine.enum_names("wtype"),
        "rng": engine.enum_names("rng_type"),
        "prediction": engine.enum_names("prediction"),
        "lora_apply_mode": engine.enum_names("lora_apply_mode"),
        "cache": engine.enum_names("cache"),
        "hires_upscaler": tuple(name for name in engine.enum_names("upscaler") if name != "None"),
    }


def doctor() -> dict[str, Any]:
    """Return what is loaded, from where, in which version, and what is missing with the way to get it.

    Never raises for a broken installation: ``problems`` says what is wrong, each with its remedy.
    """
    import platform

    report: dict[str, Any] = {
        "sdcpp_py": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "engine": None,
        "devices": [],
        "problems": [],
        "hints": [],
    }
    try:
        report["engine"] = engine.versions()
        found = devices()
    except SdcppError as error:
        report["problems"].append(str(error))
        return report
    report["devices"] = [device.to_dict() for device in found]
    report["threads"] = default_threads()
    if not any(device.kind == "cpu" for device in found):
        report["problems"].append("no CPU backend was found beside the engine library: reinstall sdcpp-py")
    report["problems"] += [
        f"{device.name} does not answer: {device.problem}; start a new process, and if that fails as well look at its "
        "driver"
        for device in found
        if device.problem
    ]
    backend = engine.cuda_backend()
    if backend.problem:
        report["problems"].append(backend.problem)
    if backend.hint:
        report["hints"].append(backend.hint)
    if backend.usable and not any(device.backend == "CUDA" for device in found):
        report["hints"].append("the CUDA backend is loaded but its driver shows no GPU: everything runs on the CPU")
    if backend.module is None and not backend.hint:
        report["hints"].append("no NVIDIA driver was found: everything runs on the CPU")
    return report
