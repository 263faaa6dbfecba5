#!/usr/bin/env python3
"""Put the patched engine source into vendor/stable-diffusion.cpp, exactly as vendor/engine.toml locks it.

The source archive comes from the package index by name (pip), or from a file: ``--archive FILE`` or
``SDCPP_ENGINE_ARCHIVE``. Its hash is checked before it is unpacked, vendor/patches/series is applied with zero
fuzz, and the hash of the patched tree is checked. Everything happens in a folder beside the target, which is
renamed into place at the end: a failure leaves the old tree as it was. Run again it does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
VENDOR = ROOT / "vendor"
STAMP = ".sdcpp-stamp"


class VendorError(Exception):
    """The engine could not be vendored; the message is one line that says what to do."""


def read_lock(vendor: Path = VENDOR) -> dict[str, Any]:
    """Return the lock file's tables."""
    with open(vendor / "engine.toml", "rb") as file:
        return tomllib.load(file)


def read_series(vendor: Path = VENDOR) -> list[Path]:
    """Return the patch files in the order in which they are applied."""
    lines = (vendor / "patches" / "series").read_text().splitlines()
    names = [line.split("#")[0].strip() for line in lines]
    return [vendor / "patches" / name for name in names if name]


def inputs_key(vendor: Path = VENDOR) -> str:
    """Return the hash over everything that decides the patched tree: the lock, the series, the patches."""
    digest = hashlib.sha256()
    for path in [vendor / "engine.toml", vendor / "patches" / "series", *read_series(vendor)]:
        if not path.is_file():
            raise VendorError(f"{path.name} is named in the patch series but missing: restore it or edit the series")
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def walk_files(tree: Path) -> Iterator[tuple[str, Path]]:
    """Yield (relative POSIX name, path) of every file of a tree, sorted by name, without our stamp."""
    found = []
    for folder, _, names in os.walk(tree):
        for name in names:
            path = Path(folder, name)
            found.append((path.relative_to(tree).as_posix(), path))
    yield from sorted(item for item in found if item[0] != STAMP)


def tree_sha256(tree: Path) -> str:
    """Return one hash over the names and contents of a tree's files."""
    digest = hashlib.sha256()
    for name, path in walk_files(tree):
        digest.update(f"{file_sha256(path)}  {name}\n".encode())
    return digest.hexdigest()


def download(source: dict[str, str], into: Path) -> Path:
    """Fetch the source archive with pip and return its path."""
    spec = f"{source['package']}=={source['version']}"
    advice = "or pass the archive with --archive FILE (or SDCPP_ENGINE_ARCHIVE=FILE)"
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode != 0:
        found = shutil.which("pip3") or shutil.which("pip")
        if found is None:
            raise VendorError(f"pip is missing, so {spec} cannot be fetched: install pip, {advice}")
        pip = [found]
    command = [*pip, "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-binary", ":all:", "--dest", str(into), spec]
    # pip asks the archive for its metadata, which needs its build backend: ours is the same one, and using it
    # saves the minute that an isolated environment takes. Without it pip prepares the isolated one.
    probe = subprocess.run([sys.executable, "-c", "import scikit_build_core"], capture_output=True)
    if probe.returncode == 0:
        command.insert(command.index("--no-deps"), "--no-build-isolation")
    done = subprocess.run(command, capture_output=True, text=True)
    archives = sorted(into.glob("*.tar.gz"))
    if done.returncode != 0 or len(archives) != 1:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "ERROR" in line]
        reason = lines[-1].replace("ERROR:", "").strip() if lines else f"pip ended with status {done.returncode}"
        raise VendorError(f"pip could not fetch {spec} ({reason}): check the network, {advice}")
    return archives[0]


def safe_members(archive: tarfile.TarFile, root: str) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Yield the regular files under *root* inside the archive's one top folder, with their name below root.

    Raises:
        VendorError: a member has an absolute path, climbs with "..", or is a link or a device.
    """
    prefix = PurePosixPath(root).parts
    for member in archive:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name or re.match(r"^[A-Za-z]:", member.name):
            raise VendorError(f"the archive holds an unsafe path, {member.name!r}: do not use this archive")
        if path.parts[1 : 1 + len(prefix)] != prefix:
            continue
        if member.isdir():
            continue
        if not member.isreg():
            raise VendorError(f"the archive holds a link or device, {member.name!r}: do not use this archive")
        yield member, PurePosixPath(*path.parts[1 + len(prefix) :])


def unpack(archive: Path, root: str, into: Path) -> None:
    """Write the engine's files from the archive into a folder, each with the mode 0644 or 0755 and no owner."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member, name in safe_members(tar, root):
                target = into / name
                target.parent.mkdir(parents=True, exist_ok=True)
                reader = tar.extractfile(member)
                assert reader is not None, "safe_members yields regular files only"
                with reader, open(target, "wb") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
                target.chmod(0o755 if member.mode & 0o100 else 0o644)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise VendorError(f"{archive.name} cannot be unpacked ({error}): fetch it again") from error
    if not any(into.iterdir()):
        raise VendorError(f"{archive.name} holds no {root}: check package and root in vendor/engine.toml")


HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)")


def run_git(*arguments: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run git in a folder that belongs to no repository."""
    git = shutil.which("git")
    if git is None:
        raise VendorError("git is missing, so the patches cannot be applied: install git")
    # git apply inside an ignored folder of a repository skips every file silently and reports success, so the
    # search for a repository is stopped above the tree.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(folder.parent)
    return subprocess.run([git, *arguments], cwd=folder, env=environment, capture_output=True)


def apply_patch(tree: Path, patch: Path) -> None:
    """Apply a patch with git, without fuzz."""
    done = run_git("apply", "-p1", "--unidiff-zero", "--whitespace=nowarn", str(patch.absolute()), folder=tree)
    if done.returncode != 0:
        reason = (done.stderr.decode(errors="replace").strip() or "git gave no reason").splitlines()[0]
        raise VendorError(f"{patch.name} does not apply ({reason}): refresh it against the locked engine")


def patched_files(tree: Path, patch: Path) -> dict[str, bytes]:
    """Return the files of the tree that a patch changes, by name."""
    names = re.findall(rb"^\+\+\+ b/(.+?)\s*$", patch.read_bytes(), re.MULTILINE)
    return {name.decode(): (tree / name.decode()).read_bytes() for name in names if (tree / name.decode()).is_file()}


def refresh(patch: Path, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Write a patch's changes anew: at their lines, with no more context than the line before each."""
    with tempfile.TemporaryDirectory() as scratch:
        for side, files in (("a", before), ("b", after)):
            for name, content in files.items():
                path = Path(scratch, side, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        changes = run_git("diff", "--no-index", "--no-prefix", "--no-color", "-U1", "a", "b", folder=Path(scratch))
    header, mark, _ = patch.read_bytes().partition(b"\n---\n")
    if not mark:
        raise VendorError(f"{patch.name} has no line '---' between what and why it is and its changes: write one")
    patch.write_bytes(header + mark + shortened(changes.stdout))


def shortened(changes: bytes) -> bytes:
    """Return changes with one line of context without the lines behind a change that has another before it.

    What is left is compared when it is applied, and the hash of the tree says that every change is where it was.
    """
    lines = [line + b"\n" for line in changes.removesuffix(b"\n").split(b"\n")]
    kept: list[bytes] = []
    while lines:
        line = lines.pop(0)
        found = HUNK.fullmatch(line.removesuffix(b"\n"))
        if found is None:
            if not line.startswith((b"diff --git ", b"index ")):
                kept.append(line)
            continue
        old, olds, new, news = (int(number or 1) for number in found.groups()[:4])
        body: list[bytes] = []
        while sum(each[:1] in b" -" for each in body) < olds or sum(each[:1] in b" +" for each in body) < news:
            body.append(lines.pop(0))
        if body[0][:1] != b"+" and body[-1][:1] == b" ":
            body.pop()
            olds, news = olds - 1, news - 1
        kept += [b"@@ -%d,%d +%d,%d @@%s\n" % (old, olds, new, news, found[5].rstrip()), *body]
    return b"".join(kept)


def keep_times(new: Path, old: Path) -> None:
    """Give files that did not change their old times, so that the next build compiles only what changed."""
    for name, path in walk_files(new):
        before = old / name
        if before.is_file() and before.read_bytes() == path.read_bytes():
            os.utime(path, ns=(before.stat().st_atime_ns, before.stat().st_mtime_ns))


def write_lock_hash(vendor: Path, value: str) -> None:
    """Write the patched tree's hash into the lock file and leave every other byte of it alone."""
    path = vendor / "engine.toml"
    text = path.read_text()
    changed = re.sub(r'(\[patched\]\s*\nsha256 = ")[0-9a-f]*(")', rf"\g<1>{value}\g<2>", text)
    if value not in changed:
        raise VendorError("vendor/engine.toml has no [patched] sha256 line: restore it")
    path.write_text(changed)


def vendor_engine(archive: Path | None = None, *, lock: bool = False, vendor: Path = VENDOR) -> bool:
    """Bring vendor/stable-diffusion.cpp to the locked state.

    Args:
        archive: the source archive, or None to fetch it with pip.
        lock: shorten the patches, and write the hash of the patched tree into the lock file instead of checking it.
        vendor: the folder that holds engine.toml and patches/.

    Returns:
        True when the tree was written, False when it was up to date.

    Raises:
        VendorError: with one line that says what to do.
    """
    target = vendor / "stable-diffusion.cpp"
    stamp = target / STAMP
    if not lock and stamp.is_file() and stamp.read_text().strip() == inputs_key(vendor):
        return False
    tables = read_lock(vendor)
    source = tables["source"]
    patches = read_series(vendor)
    inputs_key(vendor)  # names a missing patch before anything is fetched
    with tempfile.TemporaryDirectory(prefix=".stable-diffusion.cpp.", dir=vendor) as scratch:
        if archive is None:
            archive = download(source, Path(scratch))
        if not archive.is_file():
            raise VendorError(f"{archive} is not a file: pass the source archive of {source['package']}")
        found = file_sha256(archive)
        if found != source["sha256"]:
            raise VendorError(
                f"{archive.name} has sha256 {found[:16]}..., the lock says {source['sha256'][:16]}...: "
                f"fetch {source['package']}=={source['version']} again, or update vendor/engine.toml on purpose"
            )
        tree = Path(scratch, "tree")
        tree.mkdir()
        unpack(archive, source["root"], tree)
        for patch in patches:
            before = patched_files(tree, patch) if lock else {}
            apply_patch(tree, patch)
            if lock:
                refresh(patch, before, patched_files(tree, patch))
        patched = tree_sha256(tree)
        if lock:
            write_lock_hash(vendor, patched)
        elif patched != tables["patched"]["sha256"]:
            raise VendorError(
                f"the patched tree has hash {patched[:16]}..., the lock says {tables['patched']['sha256'][:16]}...: "
                "after editing a patch run scripts/build/vendor.py --lock and review the change"
            )
        (tree / STAMP).write_text(inputs_key(vendor) + "\n")
        if target.exists():
            keep_times(tree, target)
            target.rename(Path(scratch, "old"))
        tree.rename(target)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Vendor the patched engine source.")
    parser.add_argument("--archive", type=Path, help="use this source archive instead of fetching it")
    parser.add_argument("--lock", action="store_true", help="shorten patches, write the tree's hash to engine.toml")
    parsed = parser.parse_args(arguments)
    archive = parsed.archive
    if archive is None and os.environ.get("SDCPP_ENGINE_ARCHIVE"):
        archive = Path(os.environ["SDCPP_ENGINE_ARCHIVE"])
    try:
        written = vendor_engine(archive, lock=parsed.lock)
    except VendorError as error:
        print(f"vendor: {error}", file=sys.stderr)
        return 1
    print(f"vendor: engine source {'written' if written else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
