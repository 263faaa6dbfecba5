#!/usr/bin/env python3
"""Install NVIDIA's compiler and libraries from PyPI into a folder that CMake takes for a CUDA toolkit.

The packages and their hashes are locked in vendor/cuda13.txt. Prints the toolkit's root.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path(__file__).resolve().parents[2] / "vendor" / "cuda13.txt"
STAMP = ".sdcpp-stamp"


class ToolkitError(Exception):
    """The toolkit could not be installed; the message is one line that says what to do."""


def complete(root: Path) -> None:
    """Add what NVIDIA's packages lack beside a system toolkit: lib64, and names without version for the linker."""
    (root / "lib64").symlink_to("lib")
    for library in sorted((root / "lib").glob("lib*.so.*")):
        link = library.with_name(library.name.split(".so")[0] + ".so")
        if not link.exists():
            link.symlink_to(library.name)


def install(folder: Path, lock: Path = LOCK) -> Path:
    """Bring the toolkit in a folder to the locked state and return its root.

    Raises:
        ToolkitError: pip could not fetch it.
    """
    root = folder / "nvidia" / "cu13"
    key = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text().strip() == key:
        return root
    if folder.exists():
        raise ToolkitError(f"{folder} holds another toolkit: remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        tree = Path(scratch, "tree")
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
             "--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(lock),
             "--target", str(tree)],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or [f"status {done.returncode}"]
            raise ToolkitError(
                f"pip could not install NVIDIA's compiler ({lines[-1].replace('ERROR:', '').strip()}): check the "
                "network, or name a toolkit of your own with -C cmake.define.CMAKE_CUDA_COMPILER=/path/to/nvcc"
            )
        complete(tree / "nvidia" / "cu13")
        (tree / STAMP).write_text(key + "\n")
        tree.rename(folder)
    return root


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Install NVIDIA's compiler and libraries from PyPI.")
    parser.add_argument("--into", type=Path, required=True, help="the folder to write")
    try:
        print(install(parser.parse_args().into.resolve()))
    except ToolkitError as error:
        print(f"cuda: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
