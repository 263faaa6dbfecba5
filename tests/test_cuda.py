"""The CUDA backend as it is found, or not, in an installation; no GPU and no module is needed."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sdcpp_py
from sdcpp_py import engine
from sdcpp_py._version import __version__
from sdcpp_py.backends import cuda


class Site:
    """A folder of installed packages, with or without an NVIDIA driver beside it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.engine = folder / "sdcpp_py"
        self.engine.mkdir()
        self.loaded: list[str] = []
        self.refused: str | None = None
        # NVIDIA's packages may be installed here, as PyTorch does.
        others = [path for path in sys.path if not Path(path, "nvidia").is_dir()]
        monkeypatch.setattr(sys, "path", [str(folder), *others])
        monkeypatch.setattr(cuda, "driver_version", lambda: self.driver)
        monkeypatch.setattr(ctypes, "CDLL", self.load)
        self.driver: int | None = 13000

    def load(self, path: str) -> None:
        self.loaded.append(Path(path).name)
        if self.refused and self.refused in path:
            raise OSError(f"{self.refused}: cannot open shared object file")

    def install(self, name: str, version: str, *files: str) -> None:
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for file in files:
            path = self.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def plugin(self, version: str = __version__) -> Path:
        self.install(cuda.PLUGIN, version, f"sdcpp_py_cuda13/{cuda.MODULE}")
        return self.folder / "sdcpp_py_cuda13" / cuda.MODULE


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_nothing_is_installed(site: Site) -> None:
    found = cuda.find(site.engine)
    assert found.module is None
    assert not found.usable
    assert found.hint == (
        f"an NVIDIA driver is here but no CUDA backend: pip install 'sdcpp-py[cuda13]=={__version__}'"
    )
    site.driver = None
    assert cuda.find(site.engine) == cuda.Backend()


def test_plugin_is_loaded_after_nvidias_libraries(site: Site) -> None:
    libraries = list(cuda.LIBRARIES)
    site.install("nvidia-cuda-runtime", "13.0.96", libraries[0])
    site.install("nvidia-cublas", "13.0.2.14", *libraries[1:])
    module = site.plugin()
    found = cuda.find(site.engine)
    assert found == cuda.Backend(module)
    assert found.usable
    assert site.loaded == ["libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", cuda.MODULE]


def test_systems_libraries_serve_where_nvidias_packages_are_missing(site: Site) -> None:
    site.plugin()
    assert cuda.find(site.engine).usable
    assert site.loaded == [cuda.MODULE]


def test_module_beside_the_engine_comes_first(site: Site) -> None:
    site.plugin("9.9.9")
    (site.engine / cuda.MODULE).touch()
    assert cuda.find(site.engine) == cuda.Backend(site.engine / cuda.MODULE)


def test_plugin_of_another_version_is_refused(site: Site) -> None:
    site.plugin("9.9.9")
    found = cuda.find(site.engine)
    assert not found.usable
    assert found.problem == (
        f"sdcpp-py-cuda13 9.9.9 does not fit sdcpp-py {__version__}, so CUDA is off: "
        f"pip install sdcpp-py-cuda13=={__version__}"
    )
    assert site.loaded == []


def test_missing_driver_is_no_problem(site: Site) -> None:
    site.plugin()
    site.driver = None
    found = cuda.find(site.engine)
    assert not found.usable
    assert found.problem is None
    assert "no NVIDIA driver was found: install NVIDIA's driver 580 or newer" in (found.hint or "")
    assert site.loaded == []


def test_old_driver_is_named(site: Site) -> None:
    site.plugin()
    site.driver = 12040
    assert "too old for CUDA 13: install NVIDIA's driver 580 or newer" in (cuda.find(site.engine).problem or "")


@pytest.mark.parametrize("refused", ["libcublas.so.13", cuda.MODULE])
def test_what_cannot_be_loaded_is_named(site: Site, refused: str) -> None:
    site.install("nvidia-cublas", "13.0.2.14", *cuda.LIBRARIES)
    site.plugin()
    site.refused = refused
    found = cuda.find(site.engine)
    assert not found.usable
    assert f"({refused}: cannot open shared object file): pip install 'sdcpp-py[cuda13-libs]'" in (found.problem or "")


def test_doctor_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "cuda_backend", lambda: cuda.Backend(Path("m"), "it is broken: mend it", None))
    assert sdcpp_py.doctor()["problems"] == ["it is broken: mend it"]
    monkeypatch.setattr(engine, "cuda_backend", lambda: cuda.Backend(Path("m"), None, "buy a GPU"))
    report = sdcpp_py.doctor()
    assert (report["problems"], report["hints"]) == ([], ["buy a GPU"])
    monkeypatch.setattr(engine, "cuda_backend", lambda: cuda.Backend(Path("m")))
    assert sdcpp_py.doctor()["hints"] == [
        "the CUDA backend is loaded but its driver shows no GPU: everything runs on the CPU"
    ]


def test_broken_plugin_leaves_the_cpu_alone(tmp_path: Path) -> None:
    """In a process of its own, with files that are no libraries where the plugin would be."""
    info = tmp_path / f"sdcpp_py_cuda13-{__version__}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {cuda.PLUGIN}\nVersion: {__version__}\n")
    (tmp_path / "sdcpp_py_cuda13").mkdir()
    (tmp_path / "sdcpp_py_cuda13" / cuda.MODULE).write_text("no library")
    code = (
        "import json, sdcpp_py; from sdcpp_py.backends import cuda; cuda.driver_version = lambda: 13000; "
        "report = sdcpp_py.doctor(); "
        "print(json.dumps([report['problems'], [d['name'] for d in report['devices']]]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    problems, names = json.loads(done.stdout)
    assert len(problems) == 1
    assert "cannot be loaded" in problems[0]
    assert "CPU" in names
