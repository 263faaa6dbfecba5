"""The CUDA backend: where its module is, what it needs beside it, and why it cannot be used."""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

from .._version import __version__

PLUGIN = "sdcpp-py-cuda13"
MODULE = "ggml-cuda.dll" if sys.platform == "win32" else "libggml-cuda.so"
DRIVER = "NVIDIA's driver 580 or newer"
CUDA_VERSION = 13000
# Each needs the ones before it.
LIBRARIES = {
    "nvidia/cu13/lib/libcudart.so.13": "nvidia-cuda-runtime",
    "nvidia/cu13/lib/libcublasLt.so.13": "nvidia-cublas",
    "nvidia/cu13/lib/libcublas.so.13": "nvidia-cublas",
}


@dataclass(frozen=True)
class Backend:
    """What is installed of the CUDA backend.

    Attributes:
        module: the module's file, or None when it is not installed.
        problem: why the module cannot be used, with the remedy, or None.
        hint: what a user may want to know or install, or None.
    """

    module: Path | None = None
    problem: str | None = None
    hint: str | None = None

    @property
    def usable(self) -> bool:
        """Whether the module can be loaded."""
        return self.module is not None and not self.problem and not self.hint


@functools.cache
def driver_version() -> int | None:
    """Return the newest CUDA version of the NVIDIA driver, 13000 for 13.0, or None without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else 0


def find(engine: Path) -> Backend:
    """Find the CUDA module beside the engine or in its own package, and ready it for loading.

    NVIDIA's libraries are loaded from the packages that brought them; the module's own needs are then met by name.

    Args:
        engine: the folder of the engine library.
    """
    from importlib.metadata import PackageNotFoundError, distribution  # a fifth of what importing this package takes

    module = engine / MODULE
    if not module.is_file():
        try:
            plugin = distribution(PLUGIN)
        except PackageNotFoundError:
            hint = f"an NVIDIA driver is here but no CUDA backend: pip install 'sdcpp-py[cuda13]=={__version__}'"
            return Backend(hint=hint if driver_version() is not None else None)
        module = Path(str(plugin.locate_file("sdcpp_py_cuda13"))) / MODULE
        if plugin.version != __version__:
            return Backend(
                module,
                f"{PLUGIN} {plugin.version} does not fit sdcpp-py {__version__}, so CUDA is off: "
                f"pip install {PLUGIN}=={__version__}",
            )
        if (driver_version() or CUDA_VERSION) < CUDA_VERSION:
            return Backend(module, f"the NVIDIA driver here is too old for CUDA 13: install {DRIVER}")
    if driver_version() is None:
        return Backend(
            module,
            hint=f"the CUDA backend is installed but no NVIDIA driver was found: install {DRIVER}; until then "
            "everything runs on the CPU",
        )
    try:
        for library, owner in LIBRARIES.items():
            _load_from(owner, library)
        ctypes.CDLL(str(module))
    except OSError as error:
        return Backend(module, f"{module} cannot be loaded ({error}): pip install 'sdcpp-py[cuda13-libs]'")
    return Backend(module)


def _load_from(owner: str, library: str) -> None:
    """Load a library of an installed package; without the package the system may have its own."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        path = Path(str(distribution(owner).locate_file(library)))
    except PackageNotFoundError:
        return
    if path.is_file():
        ctypes.CDLL(str(path))
