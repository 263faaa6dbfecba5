"""A thread of the CPU's team that comes late holds nobody up but for what only it can do."""

from __future__ import annotations

import ctypes

import pytest

from sdcpp_py import engine
from support.children import in_child


class Found(ctypes.Structure):
    """What the probe found."""

    _fields_ = [(name, ctypes.c_int) for name in ("late_parts", "in_order", "complete", "bound")]


def compute(when: str, threads: int, *, whole: bool = False) -> Found:
    """Compute nodes with a thread that comes late, and check what holds whenever it does."""
    engine.library()
    found = Found()
    library = ctypes.CDLL(str(engine.versions()["library"]))
    library.sdcpp_probe_late(when.encode(), threads, whole, ctypes.byref(found))
    assert (found.in_order, found.complete, found.bound) == (1, 1, 0)
    return found


@pytest.mark.parametrize("threads", [2, 3])
@in_child
def test_one_that_comes_when_all_is_done(threads: int) -> None:
    assert compute("after", threads).late_parts == 0


@pytest.mark.parametrize("threads", [2, 3])
@in_child
def test_one_that_is_kept_from_a_piece_that_it_has_begun(threads: int) -> None:
    """The others do the rest of the node, and wait; where there are more processors they lend it one of theirs."""
    assert compute("within", threads).late_parts >= 1


@in_child
def test_one_that_everybody_has_to_wait_for() -> None:
    assert compute("before", 3, whole=True).late_parts == 6
