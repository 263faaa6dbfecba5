"""What the tests share: models to load, and a header that names what is tested."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdcpp_py

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from make_checkpoint import write_checkpoint  # noqa: E402  (scripts/ is no package)


def pytest_report_header() -> list[str]:
    report = sdcpp_py.doctor()
    engine = report["engine"] or {}
    names = ", ".join(device["name"] for device in report["devices"])
    return [f"engine: {engine.get('engine_commit')}, ggml {engine.get('ggml')}; devices: {names or report['problems']}"]


def pytest_configure() -> None:
    # A segfault in native code names the test that was running.
    faulthandler.enable()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.x checkpoint with random weights."""
    path = tmp_path_factory.mktemp("models") / "tiny-sd1.safetensors"
    write_checkpoint("sd1", path, tiny=True)
    return path


@pytest.fixture(scope="session")
def sd(checkpoint: Path) -> Iterator[sdcpp_py.StableDiffusion]:
    """The tiny model, loaded once."""
    with sdcpp_py.StableDiffusion(checkpoint) as loaded:
        yield loaded
