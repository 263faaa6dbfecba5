"""scripts/build/cuda_toolkit.py: what it adds to NVIDIA's packages, and what it says when pip cannot bring them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

import cuda_toolkit


class Pip:
    """Stands in for pip: unpacks what NVIDIA's packages hold, or fails."""

    def __init__(self, error: str = "") -> None:
        self.error = error
        self.calls = 0

    def __call__(self, command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert "--require-hashes" in command
        lib = Path(command[command.index("--target") + 1], "nvidia", "cu13", "lib")
        lib.mkdir(parents=True)
        for name in ("libcudart.so.13", "libcublas.so.13", "libcudart_static.a"):
            (lib / name).write_text(name)
        return subprocess.CompletedProcess(command, 1 if self.error else 0, "", self.error)


def test_linker_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    root = cuda_toolkit.install(tmp_path / "build" / "cuda13")
    assert root == tmp_path / "build" / "cuda13" / "nvidia" / "cu13"
    assert (root / "lib64" / "libcublas.so").read_text() == "libcublas.so.13"
    assert (root / "lib64" / "libcudart.so").read_text() == "libcudart.so.13"
    assert cuda_toolkit.install(tmp_path / "build" / "cuda13") == root
    assert pip.calls == 1, "the second time it is there"


def test_failure_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Pip("WARNING: x\nERROR: No matching distribution found for nvidia-nvvm"))
    with pytest.raises(cuda_toolkit.ToolkitError, match=r"\(No matching distribution .*CMAKE_CUDA_COMPILER=/path"):
        cuda_toolkit.install(tmp_path / "cuda13")
    assert list(tmp_path.iterdir()) == []


def test_changed_lock_asks_for_a_clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Pip())
    cuda_toolkit.install(tmp_path / "cuda13")
    lock = tmp_path / "lock.txt"
    lock.write_text("other")
    with pytest.raises(cuda_toolkit.ToolkitError, match="holds another toolkit: remove it"):
        cuda_toolkit.install(tmp_path / "cuda13", lock)
