#!/usr/bin/env python3
"""Check what is inside wheels and source archives of this project: scripts/build/check_wheel.py FILE ...

Given together, the CUDA wheel is also checked against the core wheel: every symbol it needs must be in the core's
libraries, in NVIDIA's (--nvidia FOLDER), or be the driver's or the C library's. Linux wheels need pyelftools.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODEL = "sdcpp_py/models/embedded.gguf"
PAGE = "sdcpp_py/server/page/index.html"
CORE_LIMIT = 25 << 20
SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so\.\d+|ld-linux[\w-]*\.so\.\d")
CUDA_NEEDS = {"libggml-base.so", "libcuda.so.1", "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13"}
NATIVE = re.compile(r"\.(so|dylib|dll|pyd)(\.|$)")
LICENCES = ("licenses/LICENSE", "stable-diffusion.cpp/LICENSE", "stable-diffusion.cpp/ggml/LICENSE")


class Library:
    """What the dynamic section of an ELF file says."""

    def __init__(self, data: bytes) -> None:
        from elftools.elf.elffile import ELFFile

        elf = ELFFile(BytesIO(data))
        tags = list(elf.get_section_by_name(".dynamic").iter_tags())
        self.needed = [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]
        self.soname = next((tag.soname for tag in tags if tag.entry.d_tag == "DT_SONAME"), None)
        self.rpath = [getattr(tag, "rpath", None) or getattr(tag, "runpath", None) for tag in tags
                      if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]  # fmt: skip
        symbols = list(elf.get_section_by_name(".dynsym").iter_symbols())
        self.exports = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF" and s["st_info"]["bind"] != "STB_LOCAL"}
        versions = elf.get_section_by_name(".gnu.version")
        needs = elf.get_section_by_name(".gnu.version_r")
        system = {
            version["vna_other"]
            for need, wanted in (needs.iter_versions() if needs else ())
            for version in wanted
            if SYSTEM.fullmatch(need.name)
        }
        self.undefined = {
            symbol.name
            for index, symbol in enumerate(symbols)
            if symbol["st_shndx"] == "SHN_UNDEF"
            and symbol["st_info"]["bind"] == "STB_GLOBAL"
            and (versions is None or versions.get_symbol(index)["ndx"] not in system)
        }
        self.stripped = elf.get_section_by_name(".symtab") is None


def check_common(name: str, files: dict[str, bytes], folder: str) -> Iterator[str]:
    """Yield what is wrong with the files of any wheel of ours."""
    info = next((path.split("/")[0] for path in files if path.endswith(".dist-info/METADATA")), "no metadata")
    for path, data in files.items():
        if not path.startswith((f"{folder}/", f"{info}/")):
            yield f"{path} is outside {folder}/"
        if path.endswith((".pyc", ".h", ".cpp", ".cu", ".a")) or "loopback" in path:
            yield f"{path} does not belong into a wheel"
        if NATIVE.search(path) and path.count("/") != 1:
            yield f"{path} is not directly in {folder}/"
        if re.search(r"\.so\.\d", path):
            yield f"{path} has a version in its name"
        if str(ROOT).encode() in data or str(Path.home()).encode() + b"/" in data:
            yield f"{path} holds a path of the machine that built it"
    for licence in LICENCES:
        if not any(path.startswith(info) and path.endswith(licence) for path in files):
            yield f"{licence} is missing"
    seen: dict[bytes, str] = {}
    for path, data in files.items():
        if len(data) > 4096 and seen.setdefault(data, path) != path:
            yield f"{path} is a copy of {seen[data]}"
    for path, library in libraries(files).items():
        if library.rpath not in ([], ["$ORIGIN"]):
            yield f"{path} looks for libraries in {library.rpath}"
        if library.soname not in (None, path.split("/")[-1]):
            yield f"{path} has SONAME {library.soname}"
        if not library.stripped:
            yield f"{path} is not stripped"


def libraries(files: dict[str, bytes]) -> dict[str, Library]:
    """Return the ELF files of a wheel."""
    return {path: Library(data) for path, data in files.items() if data.startswith(b"\x7fELF")}


def check_core(name: str, files: dict[str, bytes], size: int, compressed_model: int) -> Iterator[str]:
    """Yield what is wrong with the core wheel."""
    if "-cp310-abi3-" not in name:
        yield "its tag is not cp310-abi3"
    for wanted in (MODEL, PAGE):
        if wanted not in files:
            yield f"{wanted} is missing"
    if size - compressed_model > CORE_LIMIT:
        yield f"{(size - compressed_model) / 1e6:.1f} MB without the model, the limit is {CORE_LIMIT / 1e6:.1f}"
    variants = sorted(path for path in files if re.search(r"ggml-cpu-\w[\w.]*\.(so|dll)$", path))
    if not re.search("macos", name) and len(variants) < 8:
        yield f"only {len(variants)} CPU variants: {variants}"
    own = {path.split("/")[1] for path in files if NATIVE.search(path)}
    for path, library in libraries(files).items():
        for needed in library.needed:
            if needed not in own and not SYSTEM.fullmatch(needed):
                yield f"{path} needs {needed}, which is neither the wheel's nor the system's"
    if any("cuda" in library for library in own):
        yield "it holds a CUDA library"


def check_cuda(name: str, files: dict[str, bytes], core: dict[str, bytes] | None, nvidia: Path | None) -> Iterator[str]:
    """Yield what is wrong with the CUDA wheel, and which of its symbols nobody has."""
    if "-py3-none-" not in name:
        yield "its tag is not py3-none"
    if [path for path in files if NATIVE.search(path)] != ["sdcpp_py_cuda13/libggml-cuda.so"]:
        yield "it holds another library than libggml-cuda.so"
        return
    module = Library(files["sdcpp_py_cuda13/libggml-cuda.so"])
    if "ggml_backend_init" not in module.exports:
        yield "the module does not export ggml_backend_init"
    for needed in module.needed:
        if needed not in CUDA_NEEDS and not SYSTEM.fullmatch(needed):
            yield f"the module needs {needed}"
    if missing := CUDA_NEEDS - set(module.needed):
        yield f"the module does not need {', '.join(sorted(missing))}"
    version = name.split("-")[1]
    metadata = next(data for path, data in files.items() if path.endswith("/METADATA")).decode()
    if f"Requires-Dist: sdcpp-py[cuda13-libs]=={version}" not in metadata:
        yield "it does not require the core of its own version"
    if core is not None and nvidia is not None:
        known = set().union(*(library.exports for library in libraries(core).values()))
        for path in sorted(nvidia.glob("lib*.so.*")):
            known |= Library(path.read_bytes()).exports
        unknown = {symbol for symbol in module.undefined - known if not re.match(r"cu[A-Z]", symbol)}
        if unknown:
            yield f"nobody has {', '.join(sorted(unknown))}"


def check_sdist(names: list[str]) -> Iterator[str]:
    """Yield what is wrong with the source archive."""
    inside = {name.split("/", 1)[1] for name in names if "/" in name}
    for wanted in ("vendor/stable-diffusion.cpp/.sdcpp-stamp", "vendor/stable-diffusion.cpp/ggml/src/ggml.c",
                   "native/sdcpp/api/sdcpp.h", "vendor/cuda13.txt", "scripts/build/vendor.py", "cmake/cuda.cmake",
                   MODEL, PAGE):  # fmt: skip
        if wanted not in inside:
            yield f"{wanted} is missing"
    for name in sorted(inside):
        if NATIVE.search(name) or name.startswith(("build/", "dist/", "out/", "wheelhouse/")):
            yield f"{name} does not belong into a source archive"


def main(arguments: list[str] | None = None) -> int:
    """Check the files named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="wheels and source archives")
    parser.add_argument("--nvidia", type=Path, help="the folder of NVIDIA's libraries, to look symbols up")
    options = parser.parse_args(arguments)
    wheels: dict[Path, tuple[dict[str, bytes], int]] = {}
    found: list[str] = []
    for path in options.files:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as archive:
                files = {item.filename: archive.read(item) for item in archive.infolist()}
                model = archive.getinfo(MODEL).compress_size if MODEL in files else 0
            wheels[path] = (files, model)
        else:
            with tarfile.open(path) as archive:
                found += [f"{path.name}: {line}" for line in check_sdist(archive.getnames())]
    core: Any = next((files for path, (files, _) in wheels.items() if path.name.startswith("sdcpp_py-")), None)
    for path, (files, model) in wheels.items():
        is_core = files is core
        folder = "sdcpp_py" if is_core else "sdcpp_py_cuda13"
        problems = list(check_common(path.name, files, folder))
        if is_core:
            problems += check_core(path.name, files, path.stat().st_size, model)
        else:
            problems += check_cuda(path.name, files, core, options.nvidia)
        found += [f"{path.name}: {line}" for line in problems]
        native = sum(1 for name in files if NATIVE.search(name))
        print(f"{path.name}: {len(files)} files, {native} native, {path.stat().st_size / 1e6:.1f} MB", end="")
        print(f", {(path.stat().st_size - model) / 1e6:.1f} MB without the model" if is_core else "")
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
