"""scripts/build/check_wheel.py: each rule refuses what it is there to refuse."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

import check_wheel

CORE = "sdcpp_py-1.0-cp310-abi3-manylinux_2_28_x86_64.whl"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A library that stands for all of ours."""
    pytest.importorskip("elftools")
    folder = tmp_path_factory.mktemp("library")
    source, made = folder / "one.c", folder / "one.so"
    source.write_text("int sdcpp_one(void) { return 1; }\n")
    done = subprocess.run(["cc", "-shared", "-fPIC", "-s", "-Wl,-rpath,$ORIGIN", "-o", made, source], check=False)
    if done.returncode != 0:
        pytest.skip("no C compiler")
    return made.read_bytes()


@pytest.fixture
def core(library: bytes) -> dict[str, bytes]:
    """What a good core wheel holds."""
    info = "sdcpp_py-1.0.dist-info"
    variants = {f"sdcpp_py/libggml-cpu-v{n}.so": library + bytes([n]) for n in range(14)}
    licences = {f"{info}/{name}": b"MIT" for name in check_wheel.LICENCES}
    return {
        "sdcpp_py/__init__.py": b"",
        check_wheel.MODEL: b"GGUF",
        check_wheel.PAGE: b"",
        f"{info}/METADATA": b"",
        **variants,
        **licences,
    }


def problems(folder: Path, files: dict[str, bytes], capsys: pytest.CaptureFixture[str], name: str = CORE) -> list[str]:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in files.items():
            archive.writestr(file, data)
    status = check_wheel.main([str(path)])
    lines = capsys.readouterr().err.splitlines()
    assert bool(lines) == bool(status)
    return [line.removeprefix(f"{name}: ") for line in lines]


def test_good_core_passes(tmp_path: Path, core: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(tmp_path, core, capsys) == []


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"sdcpp_py.libs/libgomp-1234.so.1": b"x"}, "sdcpp_py.libs/libgomp-1234.so.1 is outside sdcpp_py/"),
        ({"sdcpp_py/lib/x.so": b"x"}, "sdcpp_py/lib/x.so is not directly in sdcpp_py/"),
        ({"sdcpp_py/libggml.so.0": b"x"}, "sdcpp_py/libggml.so.0 has a version in its name"),
        ({"sdcpp_py/libggml-loopback.so": b"x"}, "sdcpp_py/libggml-loopback.so does not belong into a wheel"),
        ({"sdcpp_py/libggml-cuda.so": b"x"}, "it holds a CUDA library"),
        ({"sdcpp_py/a.bin": b"x" * 5000, "sdcpp_py/b.bin": b"x" * 5000}, "sdcpp_py/b.bin is a copy of sdcpp_py/a.bin"),
        (
            {"sdcpp_py/c.bin": str(check_wheel.ROOT).encode()},
            "sdcpp_py/c.bin holds a path of the machine that built it",
        ),
    ],
)
def test_what_does_not_belong_is_named(
    tmp_path: Path, core: dict[str, bytes], extra: dict[str, bytes], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in problems(tmp_path, {**core, **extra}, capsys)


def test_what_is_missing_is_named(tmp_path: Path, core: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    kept = {name: data for name, data in core.items() if "cpu-v1" not in name and not name.endswith("ggml/LICENSE")}
    del kept[check_wheel.MODEL]
    kept["sdcpp_py/libggml-cpu-rpath.so"] = kept["sdcpp_py/libggml-cpu-v2.so"].replace(b"$ORIGIN", b"/ORIGIN")
    said = problems(tmp_path, kept, capsys, CORE.replace("cp310-abi3", "cp311-cp311"))
    assert said[0] == "stable-diffusion.cpp/ggml/LICENSE is missing"
    assert "sdcpp_py/libggml-cpu-rpath.so looks for libraries in ['/ORIGIN']" in said
    assert "its tag is not cp310-abi3" in said
    assert f"{check_wheel.MODEL} is missing" in said


def test_source_archive_needs_the_engine() -> None:
    said = list(check_wheel.check_sdist(["sdcpp_py-1.0/native/sdcpp/api/sdcpp.h", "sdcpp_py-1.0/build/libggml.so"]))
    assert "vendor/stable-diffusion.cpp/.sdcpp-stamp is missing" in said
    assert "build/libggml.so does not belong into a source archive" in said
