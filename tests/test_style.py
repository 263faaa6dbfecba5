"""The sizes of files: one that is long has more than one purpose, or a reason that is said here."""

from __future__ import annotations

import subprocess

import pytest

from support.build_tree import ROOT

LONGEST = 500
LONG: dict[str, str] = {}
"""Files with more lines than that, and why."""


def lines(content: bytes) -> int:
    """Count the lines of a text; binary files have none."""
    return 0 if b"\0" in content else content.count(b"\n")


def test_files_are_short() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no repository: nobody says which files are tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [path for path in listed.split("\0") if path and (ROOT / path).is_file()]
    long = {path for path in paths if lines((ROOT / path).read_bytes()) > LONGEST}
    assert len(paths) > 100
    assert sorted(long - set(LONG)) == [], "cut them where their purposes part, or say why not"
    assert sorted(set(LONG) - long) == [], "these need no reason any more"
