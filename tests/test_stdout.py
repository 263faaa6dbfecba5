"""Standard output is the caller's: no library of ours can write there; conftest.py asserts that none of a test does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdcpp_py import engine

PRINTING = {"printf", "__printf_chk", "vprintf", "__vprintf_chk", "puts", "putchar", "putchar_unlocked", "_ZSt4cout"}


def test_libraries_import_nothing_that_prints() -> None:
    elffile = pytest.importorskip("elftools.elf.elffile")
    folder = Path(engine.versions()["library"]).parent
    libraries = [path for path in sorted(folder.glob("*.so")) if "loopback" not in path.name]
    assert len(libraries) >= 4
    for path in libraries:
        with path.open("rb") as file:
            symbols = list(elffile.ELFFile(file).get_section_by_name(".dynsym").iter_symbols())
        needed = {symbol.name.split("@")[0] for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"}
        assert needed & PRINTING == set(), path.name
