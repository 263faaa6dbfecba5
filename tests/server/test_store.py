"""What keeps jobs and pictures: full, locked, emptied, damaged, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from sdcpp_py.server import saving
from sdcpp_py.server import scheduler as scheduling_module
from sdcpp_py.server import store as store_module
from sdcpp_py.server.jobs import (
    Job,
    StoreError,
)
from sdcpp_py.server.store import Store
from support.fake_worker import FakeWorker
from support.scheduling import asked, run, scheduling


def test_a_full_disk_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And old pictures make room for new ones."""

    async def work() -> None:
        worker = FakeWorker()
        async with scheduling(tmp_path, [worker], store_limit=20) as scheduler:
            jobs = [await scheduler.finished(scheduler.submit(asked())) for _ in range(4)]
            kept = [scheduler.store.picture(scheduler.store.get(job.id), 0) is not None for job in jobs]  # type: ignore[arg-type]
            assert kept == [False, False, True, True]
            assert scheduler.store.bytes == 14
            shutil.rmtree(tmp_path / "store" / "pictures")  # what people remove makes room, too
            jobs = [await scheduler.finished(scheduler.submit(asked())) for _ in range(3)]
            assert [job.state for job in jobs] == ["done"] * 3
            assert scheduler.store.bytes == 14

            def full(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(Store, "_write", full)
            monkeypatch.setattr(saving, "_FULL_RETRY_SECONDS", 0.05)
            first = scheduler.submit(asked("first"))
            await asyncio.sleep(0.1)
            second = scheduler.submit(asked("second"))
            await asyncio.sleep(0.1)
            assert (first.state, second.state) == ("running", "queued")  # which waits until there is room
            monkeypatch.undo()
            for job in (first, second):
                assert (await scheduler.finished(job)).state == "done"
            monkeypatch.setattr(Store, "_write", full)
            monkeypatch.setattr(saving, "_FULL_SECONDS", 0.0)
            job = await scheduler.finished(scheduler.submit(asked()))
            assert (job.state, job.error["type"]) == ("failed", "StoreError")  # type: ignore[index]
            with pytest.raises(StoreError, match="No space left"):
                scheduler.submit(asked(pictures=[b"in"]))
            assert list((tmp_path / "store" / "inputs").iterdir()) == []
            assert scheduler.waiting == 0

    run(work)


def test_a_locked_store_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another program has it locked jobs end, and are kept when it is free again."""
    monkeypatch.setattr(scheduling_module, "_RECENT", 1)
    monkeypatch.setattr(saving, "_RETRY_SECONDS", 0.05)

    async def work() -> None:
        worker = FakeWorker()
        worker.held.clear()
        async with scheduling(tmp_path, [worker]) as scheduler:
            jobs = [scheduler.submit(asked(name)) for name in "abc"]
            await asyncio.sleep(0.05)
            with contextlib.closing(sqlite3.connect(tmp_path / "store" / "jobs.sqlite", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                worker.held.set()
                begin = time.monotonic()
                for job in jobs:
                    await scheduler.finished(job)
                    assert scheduler.find(job.id).state == "done"
                with pytest.raises(StoreError, match="locked"):
                    scheduler.submit(asked())
                assert time.monotonic() - begin < 5  # by default a single try takes as long
                assert [scheduler.find(job.id).state for job in jobs] == ["done"] * 3
                assert [scheduler.store.get(job.id).state for job in jobs] != ["done"] * 3  # type: ignore[union-attr]
                other.execute("ROLLBACK")
            while scheduler.store.unfinished():
                await asyncio.sleep(0.05)
            assert scheduler.find(jobs[0].id) is not jobs[0]

    run(work)


def test_a_store_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_MOST_JOBS", 10)
    monkeypatch.setattr(store_module, "_PRUNE_EVERY", 5)

    async def work() -> None:
        async with scheduling(tmp_path, [FakeWorker()]) as scheduler:
            for _ in range(30):
                await scheduler.finished(scheduler.submit(asked("fail")))
            assert 10 <= len(scheduler.store.listed(limit=100)) <= 16  # type: ignore[attr-defined]
            monkeypatch.setattr(store_module, "_MOST_JOBS", 1000)
            monkeypatch.setattr(store_module, "_MOST_BASE", 1_000_000)
            for _ in range(40):
                await scheduler.finished(scheduler.submit(asked("fail", options={"negative_prompt": "x" * 50_000})))
            kept = scheduler.store.listed(limit=100)  # type: ignore[attr-defined]
            assert 10 <= len(kept) <= 26
            assert kept[0].created > kept[-1].created
            with contextlib.closing(sqlite3.connect(tmp_path / "store" / "jobs.sqlite")) as base:
                query = "SELECT id FROM jobs WHERE client = 'x' AND instr(lower(prompt), 'x') ORDER BY created DESC"
                (plan,) = base.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
                assert "SCAN jobs USING INDEX jobs_listed" in plan[-1]  # not through the results of all jobs

    run(work)


def test_a_store_harms_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    """And says what is wrong with it by its name."""
    folder = tmp_path / "store"
    mine, photo = folder / "inputs" / "letters" / "mine.txt", folder / "pictures" / "photo.jpg"
    orphan = folder / "pictures" / f"{'0f' * 16}-0.png"
    for file in (mine, photo, orphan):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    left = []
    for _ in range(2):
        Store(folder, 1e9).close()
        left.append((mine.exists(), photo.exists(), orphan.exists()))
    # What a new store finds may be of a damaged one that was moved away.
    assert left == [(True, True, True), (True, True, False)]

    async def work() -> None:
        async with scheduling(tmp_path, [FakeWorker()]) as scheduler:
            shutil.rmtree(folder / "pictures")
            assert (await scheduler.finished(scheduler.submit(asked()))).state == "done"
            shutil.rmtree(folder)
            with pytest.raises(StoreError, match="store .*store was removed"):
                scheduler.submit(asked())

    run(work)
    shutil.rmtree(folder, ignore_errors=True)
    store = Store(folder, 1e9)
    jobs = [Job("", 0, time.time() + 99, {**asked().work(), "mode": "txt2img"}) for _ in range(3)]
    for job in jobs:
        store.add(job, [])
    store.close()
    with contextlib.closing(sqlite3.connect(folder / "jobs.sqlite")) as base:
        for job, broken in zip(jobs, ("request = '{', files = '['", "request = '{}'"), strict=False):
            base.execute(f"UPDATE jobs SET {broken} WHERE id = ?", (job.id,))
        base.commit()

    async def after() -> None:
        """Jobs that cannot be read are no end of the others."""
        async with scheduling(tmp_path, [FakeWorker()]) as scheduler:
            assert (await scheduler.finished(scheduler.find(jobs[2].id))).state == "done"
            assert [job.id for job in scheduler.store.listed()] == [jobs[2].id]  # type: ignore[attr-defined]

    run(after)
    folder.mkdir(exist_ok=True)
    (folder / "jobs.sqlite").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(StoreError, match=r"jobs.sqlite is damaged .*move it away"):
        Store(folder, 1e9)


def test_a_store_finds_words_in_any_writing_and_is_its_owners(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "store", 1e9)
    store.add(Job("me", 0, 1e10, asked("ŽLUTÝ Míč, ÉTÉ").work()), [])
    for words, count in (("žlutý míč", 1), ("été MÍČ", 1), ("míče", 0), ("%", 0)):
        assert len(store.listed(search=words)) == count, words
    store.close()
    if os.name == "posix":
        assert (tmp_path / "new" / "store").stat().st_mode & 0o777 == 0o700
