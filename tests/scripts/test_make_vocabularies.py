from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

import make_vocabularies

SOURCE = '#include "words.hpp"\nextern "C" int second() { return words[1] + sizeof(words); }\n'


def write_engine(folder: Path, header: str) -> Path:
    (folder / "words.hpp").write_text(header)
    (folder / "vocab.cpp").write_text(SOURCE)
    return folder / "vocab.cpp"


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles")
def test_compiles_to_the_same_bytes(tmp_path: Path) -> None:
    source = write_engine(tmp_path, "static const unsigned char words[] = {\n  0xc4, 0xa0,\n  0x0a,\n};\n")
    out = tmp_path / "out" / "vocab.cpp"
    out.parent.mkdir()
    make_vocabularies.make_vocabularies(source, out)
    assert (out.parent / "words.bin").read_bytes() == b"\xc4\xa0\n"
    subprocess.run(["g++", "-shared", "-fPIC", out, "-o", tmp_path / "words.so"], check=True, cwd="/")
    assert ctypes.CDLL(str(tmp_path / "words.so")).second() == 0xA0 + 3


def test_a_header_that_holds_more_is_refused(tmp_path: Path) -> None:
    source = write_engine(tmp_path, "static const unsigned char words[] = { 0xc4 };\nstatic int more;\n")
    with pytest.raises(ValueError, match=r"words\.hpp holds more than arrays of bytes"):
        make_vocabularies.make_vocabularies(source, tmp_path / "out.cpp")
