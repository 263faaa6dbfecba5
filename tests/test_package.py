"""The package as a whole: public names, import, version, licences."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import sdcpp_py
from sdcpp_py import engine

PUBLIC = {
    "Alternative", "AppliedLora", "ArgumentError", "BackendError", "BudgetPart", "Cache", "CancelledError", "Choice",
    "ClosedError", "Conversion", "ConvertedTensor", "Device", "DeviceBudget", "DeviceMemoryError", "GeneratedImage",
    "GenerationError", "Hires", "HubError", "Images", "Lora", "MemoryReport", "ModelError", "ModelInfo", "ModuleMemory",
    "ModulePlan", "ModuleTransfer", "NetworkStream", "OutputError", "Parameters", "PhotoMaker", "PictureInfo",
    "PinBudget", "PlacementError", "Plan", "PlanReport", "ProgressEvent", "SdcppError", "SkipLayerGuidance",
    "StableDiffusion", "Tiling", "Timings", "TransferReport", "Upscaler", "Video", "__version__", "choices",
    "convert", "devices", "doctor", "info", "plan", "read_parameters",
}  # fmt: skip


def test_public_names() -> None:
    assert set(sdcpp_py.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(sdcpp_py, name) is not None
    # The function wins over the module of the same name.
    assert callable(sdcpp_py.devices)


def test_import_loads_no_native_code() -> None:
    code = (
        "import sys, sdcpp_py; "
        "bad = [m for m in ('sdcpp_py._engine', 'numpy', 'tqdm', 'typer') if m in sys.modules]; "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_is_the_distributions() -> None:
    assert importlib.metadata.version("sdcpp-py") == sdcpp_py.__version__


def test_licences_are_installed() -> None:
    files = [str(file) for file in importlib.metadata.files("sdcpp-py") or ()]
    licences = [file for file in files if "licenses" in file and file.endswith("LICENSE")]
    assert len(licences) == 3, "ours, the engine's and ggml's"


def test_nothing_but_the_border_imports_the_engine() -> None:
    package = Path(sdcpp_py.__file__).parent
    importers = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "_engine import" in path.read_text() or "import _engine" in path.read_text()
    ]
    assert importers == ["engine/library.py"]


def test_libraries_show_no_cpp_runtime() -> None:
    """With libstdc++ linked into each of them, visible copies would call one another, and crash."""
    elffile = pytest.importorskip("elftools.elf.elffile")
    libraries = sorted(Path(engine.versions()["library"]).parent.glob("*.so"))
    assert len(libraries) >= 4
    for path in libraries:
        with path.open("rb") as file:
            symbols = list(elffile.ELFFile(file).get_section_by_name(".dynsym").iter_symbols())
        shown = [symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF"]
        assert shown, path
        assert [name for name in shown if name.startswith("_ZNSt6locale")] == [], path
