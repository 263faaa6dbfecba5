"""The vendor step, on a small archive of its own: locked, patched, verified, and never half-written."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

import vendor

PATCH = """Description: change a line
---
diff --git a/src/a.txt b/src/a.txt
--- a/src/a.txt
+++ b/src/a.txt
@@ -1,3 +1,3 @@
 one
-two
+TWO
 three
"""


def make_archive(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> str:
    """Write a source archive and return its hash."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))
    return hashlib.sha256(path.read_bytes()).hexdigest()


MEMBERS: dict[str, bytes | tarfile.TarInfo] = {
    "pkg-1/setup.py": b"not the engine",
    "pkg-1/vendor/engine/src/a.txt": b"one\ntwo\nthree\n",
    "pkg-1/vendor/engine/b.txt": b"b\n",
}


class House:
    """A vendor folder in miniature."""

    def __init__(self, folder: Path) -> None:
        self.vendor = folder / "vendor"
        self.archive = folder / "pkg-1.tar.gz"
        self.tree = self.vendor / "stable-diffusion.cpp"
        (self.vendor / "patches").mkdir(parents=True)
        (self.vendor / "patches" / "series").write_text("# order\n0001-a.patch\n")
        (self.vendor / "patches" / "0001-a.patch").write_text(PATCH)
        self.lock(make_archive(self.archive, MEMBERS))

    def lock(self, sha256: str) -> None:
        (self.vendor / "engine.toml").write_text(
            f'[source]\npackage = "pkg"\nversion = "1"\nsha256 = "{sha256}"\nroot = "vendor/engine"\n\n'
            '[patched]\nsha256 = ""\n'
        )

    def run(self, **more: object) -> bool:
        return vendor.vendor_engine(self.archive, vendor=self.vendor, **more)  # type: ignore[arg-type]

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.vendor.iterdir())


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_unpacks_patches_verifies_and_then_does_nothing(house: House) -> None:
    assert house.run(lock=True)
    assert (house.tree / "src" / "a.txt").read_text() == "one\nTWO\nthree\n"
    assert (house.tree / "b.txt").read_text() == "b\n"
    assert not (house.tree / "setup.py").exists()
    assert house.leftovers() == ["engine.toml", "patches", "stable-diffusion.cpp"]
    times = {path: path.stat().st_mtime_ns for path in house.vendor.rglob("*")}
    assert not house.run()
    house.archive.unlink()
    assert not house.run(), "no archive is needed any more"
    assert {path: path.stat().st_mtime_ns for path in house.vendor.rglob("*")} == times


def test_locking_writes_the_patches_anew(house: House) -> None:
    """Their lines, although another patch moved them, and one line of context; what they make of the tree stays."""
    second = house.vendor / "patches" / "0002-b.patch"
    (house.vendor / "patches" / "series").write_text("0001-a.patch\n0002-b.patch\n")
    patch = house.vendor / "patches" / "0001-a.patch"
    patch.write_text(PATCH.replace("+1,3", "+1,4").replace("+TWO\n", "+TWO\n+two and a half\n"))
    second.write_text(
        "Why: a test\n---\n--- a/src/a.txt\n+++ b/src/a.txt\n@@ -3 +3,2 @@\n three\n+four\n"
        "--- a/b.txt\n+++ b/b.txt\n@@ -1 +1,2 @@\n+a\n b\n"
    )
    assert house.run(lock=True)
    wanted = "one\nTWO\ntwo and a half\nthree\nfour\n"
    assert (house.tree / "src" / "a.txt").read_text() == wanted
    changes = patch.read_text().partition("---\n")[2]
    assert changes == "--- a/src/a.txt\n+++ b/src/a.txt\n@@ -1,2 +1,3 @@\n one\n-two\n+TWO\n+two and a half\n"
    assert second.read_text() == (
        "Why: a test\n---\n--- a/b.txt\n+++ b/b.txt\n@@ -1,1 +1,2 @@\n+a\n b\n"
        "--- a/src/a.txt\n+++ b/src/a.txt\n@@ -4,1 +4,2 @@ two and a half\n three\n+four\n"
    )
    before = [patch.read_text(), second.read_text()]
    (house.tree / vendor.STAMP).unlink()
    assert house.run(), "they apply as they are now"
    assert (house.tree / "src" / "a.txt").read_text() == wanted
    assert house.run(lock=True)
    assert [patch.read_text(), second.read_text()] == before


def test_a_patch_says_why(house: House) -> None:
    patch = house.vendor / "patches" / "0001-a.patch"
    patch.write_text(PATCH.partition("---\n")[2])
    with pytest.raises(vendor.VendorError, match=r"0001-a.patch has no line '---'"):
        house.run(lock=True)


def test_only_changed_files_get_new_times(house: House) -> None:
    house.run(lock=True)
    os.utime(house.tree / "b.txt", ns=(1, 1))
    os.utime(house.tree / "src" / "a.txt", ns=(1, 1))
    patch = house.vendor / "patches" / "0001-a.patch"
    patch.write_text(PATCH.replace("TWO", "2"))
    assert house.run(lock=True)
    assert (house.tree / "b.txt").stat().st_mtime_ns == 1
    assert (house.tree / "src" / "a.txt").stat().st_mtime_ns > 1
    assert (house.tree / "src" / "a.txt").read_text() == "one\n2\nthree\n"


def test_wrong_archive_is_not_unpacked(house: House) -> None:
    house.archive.write_bytes(b"something else")
    with pytest.raises(vendor.VendorError, match=r"has sha256 .* fetch pkg==1 again"):
        house.run()
    assert house.leftovers() == ["engine.toml", "patches"]


def test_patched_tree_must_match_the_lock(house: House) -> None:
    house.run(lock=True)
    before = (house.tree / "src" / "a.txt").read_text()
    (house.vendor / "patches" / "0001-a.patch").write_text(PATCH.replace("TWO", "2"))
    with pytest.raises(vendor.VendorError, match="vendor.py --lock"):
        house.run()
    assert (house.tree / "src" / "a.txt").read_text() == before, "the old tree stays"


@pytest.mark.parametrize("wrong", [" one\n", " three\n"])
def test_zero_fuzz(house: House, wrong: str) -> None:
    patch = house.vendor / "patches" / "0001-a.patch"
    patch.write_text(PATCH.replace(wrong, " other\n", 1))
    with pytest.raises(vendor.VendorError, match=r"0001-a.patch does not apply .*refresh it"):
        house.run()
    assert house.leftovers() == ["engine.toml", "patches"]


def test_patches_apply_inside_an_ignored_folder_of_a_repository(house: House, tmp_path: Path) -> None:
    """git apply skips everything there without a word unless it is kept from finding the repository."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git")
    import subprocess

    subprocess.run([git, "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("vendor/\n")
    house.run(lock=True)
    assert "TWO" in (house.tree / "src" / "a.txt").read_text()


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type = kind
    info.linkname = target
    return info


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("/etc/evil", b"x"),
        ("pkg-1/vendor/engine/../../../evil", b"x"),
        ("pkg-1/vendor/engine/C:\\evil", b"x"),
        ("pkg-1/vendor/engine/link", link(tarfile.SYMTYPE, "/etc/passwd")),
        ("pkg-1/vendor/engine/hard", link(tarfile.LNKTYPE, "pkg-1/setup.py")),
        ("pkg-1/vendor/engine/fifo", link(tarfile.FIFOTYPE, "")),
    ],
)
def test_unsafe_archives(house: House, name: str, content: bytes | tarfile.TarInfo) -> None:
    house.lock(make_archive(house.archive, {**MEMBERS, name: content}))
    with pytest.raises(vendor.VendorError, match="do not use this archive"):
        house.run(lock=True)
    assert house.leftovers() == ["engine.toml", "patches"]


def test_other_archives(house: House, tmp_path: Path) -> None:
    house.lock(make_archive(house.archive, {"pkg-1/setup.py": b"x"}))
    with pytest.raises(vendor.VendorError, match="holds no vendor/engine"):
        house.run()
    house.archive.write_bytes(b"no tar")
    house.lock(hashlib.sha256(b"no tar").hexdigest())
    with pytest.raises(vendor.VendorError, match="cannot be unpacked"):
        house.run()
    with pytest.raises(vendor.VendorError, match="is not a file"):
        vendor.vendor_engine(tmp_path / "none.tar.gz", vendor=house.vendor)


def test_missing_patch_is_named_before_anything_is_fetched(house: House) -> None:
    (house.vendor / "patches" / "0001-a.patch").unlink()
    with pytest.raises(vendor.VendorError, match=r"0001-a.patch is named in the patch series but missing"):
        vendor.vendor_engine(None, vendor=house.vendor)


def test_no_network_and_no_pip(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(vendor.VendorError, match=r"pip could not fetch pkg==1 .*check the network.*--archive"):
        vendor.vendor_engine(None, vendor=house.vendor)
    monkeypatch.setattr(vendor.sys, "executable", shutil.which("false") or "/bin/false")
    monkeypatch.setattr(vendor.shutil, "which", lambda name: None)
    with pytest.raises(vendor.VendorError, match=r"pip is missing.*install pip.*--archive"):
        vendor.vendor_engine(None, vendor=house.vendor)


def test_command(house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(vendor.vendor_engine, "__kwdefaults__", {"lock": False, "vendor": house.vendor})
    monkeypatch.setenv("SDCPP_ENGINE_ARCHIVE", str(house.archive))
    assert vendor.main([]) == 1
    err = capsys.readouterr().err
    assert err.startswith("vendor: the patched tree has hash")
    assert err.count("\n") == 1
    assert vendor.main(["--lock"]) == 0
    assert "written" in capsys.readouterr().out
    assert vendor.main([]) == 0
    assert "up to date" in capsys.readouterr().out
