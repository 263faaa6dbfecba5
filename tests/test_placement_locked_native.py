"""Host weights that are locked in parts, beside the reading of the files.

Every test runs in a process of its own with the loopback accelerator as a device.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdcpp_py import engine
from support.children import in_child
from support.loopback import Loopback
from support.placed_model import ON_CPU, PINNED, Model, assert_empty, draw, total


@in_child
def test_modules_are_locked_in_parts_whole_or_not_at_all(checkpoint: Path) -> None:
    os.environ["SDCPP_PART_BYTES"] = str(1 << 20)
    loopback = Loopback(lock_pages=1)
    expected = draw(checkpoint, ON_CPU)
    for refused in (0, 1, 5, 12):
        loopback.reset()
        loopback.set(refuse_host_alloc=refused)
        with Model(checkpoint, PINNED) as model:
            memory = model.memory()
            books = loopback.books()
            if not refused:
                assert books["host_allocs"] > 12, "several parts of each module"
            missed = [row for row in memory.values() if not row["pinned"]]
            assert len(missed) == bool(refused)
            for row in missed:
                assert row["reason"].startswith("Loopback_Host refused ")
                assert (row["pinned_bytes"], row["buffer_type"]) == (0, "CPU")
            assert books["host_bytes"] == total(memory, "pinned_bytes"), "parts of a refused module are unlocked"
            loopback.reset()
            assert model.draw() == expected
            books, transfers = loopback.books(), model.transfers()
            assert books["weight_upload_pinned_bytes"] == total(transfers, "to_device_bytes_pinned") > 0
            assert books["weight_upload_pageable_bytes"] == total(transfers, "to_device_bytes_pageable")
            assert bool(books["weight_upload_pageable_bytes"]) == bool(refused)
        assert_empty(loopback)


@in_child
def test_loading_that_is_given_up_leaves_nothing(checkpoint: Path) -> None:
    os.environ["SDCPP_PART_BYTES"] = str(1 << 18)
    loopback = Loopback(lock_pages=1)
    given = {"model_path": bytes(checkpoint), "n_threads": 1, "free_params_immediately": False}

    def stop(step: engine.Step) -> None:
        raise InterruptedError

    for _ in range(5):
        with pytest.raises(InterruptedError):
            engine.Context(given, {}, stop, PINNED)
        assert_empty(loopback)
    with Model(checkpoint, PINNED) as model:
        assert model.draw() == draw(checkpoint, ON_CPU)
