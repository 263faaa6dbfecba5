"""How fast a disk is: measured on files, once for each file system."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdcpp_py.placement import disk_rate as module
from sdcpp_py.placement.disk_rate import BLOCK, disk_rate


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_known", {})


def test_files_folders_and_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest file is read, in blocks at places of which none is read twice, and the last one is not whole."""
    (tmp_path / "shards").mkdir()
    large, index = tmp_path / "shards" / "large.bin", tmp_path / "shards" / "index.json"
    large.write_bytes(bytes(2 * BLOCK + 12345))
    index.write_text("{}")
    measured = []
    read = module._measure
    monkeypatch.setattr(module, "_measure", lambda path, size: measured.append((path, size)) or read(path, size))
    for given in (large, large.parent, index):
        assert (disk_rate([given, tmp_path / "none"]) or 0.0) > 1e6
    assert measured == [(bytes(large), 2 * BLOCK + 12345)], "once"
    assert disk_rate([tmp_path / "none"]) is None
    assert disk_rate([]) is None


def test_file_systems_that_are_read_by_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(BLOCK))
    real = module.os.open

    def refuse(path: object, flags: int, *more: int) -> int:
        if flags & getattr(module.os, "O_DIRECT", 0):
            raise OSError(22, "Invalid argument")
        return real(path, flags, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(module.os, "open", refuse)
    assert (disk_rate([file]) or 0.0) > 1e6
    file.write_bytes(b"")
    module._known.clear()
    assert disk_rate([file]) is None, "there is nothing to read"
