"""What the script that makes faults calls wrong: a server that lost or tore something must not pass."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any

import faults
from sdcpp_py.server.jobs import Job
from sdcpp_py.server.store import Store


class Answering:
    """Answers each request with the same."""

    def __init__(self, status: int, content: bytes) -> None:
        self.given = status, content

    async def request(self, *_: Any, **__: Any) -> tuple[int, bytes]:
        return self.given


def a_run(http: Any = None) -> Any:
    return faults.Run(None, http, {0: hashlib.sha256(b"picture").hexdigest()}, random.Random(0))


def test_failures_need_a_fault_that_gives_them() -> None:
    lost = {"id": "a", "state": "failed", "attempts": 2, "error": {"type": "WorkerLostError", "message": "gone"}}
    run = a_run()
    run.made["worker"] = 1
    run.failure(lost)
    assert run.wrong == []
    for job in (
        {**lost, "attempts": 1},  # given up too soon
        {**lost, "state": "cancelled"},
        {**lost, "error": None},
        {**lost, "error": {"type": "WorkerLostError", "message": ""}},
        {**lost, "error": {"type": "InternalError", "message": "x"}},
        {**lost, "error": {"type": "StoreError", "message": "no disk was full"}},
    ):
        run = a_run()
        run.made["worker"] = 1
        run.failure(job)
        assert len(run.wrong) == 1, job
    assert faults.raised("x\nTraceback (most recent call last):\n  File\n    code\nKeyError: 1\nINFO y\n") == [
        "KeyError: 1"
    ]


def test_pictures_must_be_whole_and_their_seeds() -> None:
    for status, content, pictures, wrong in (
        (200, b"picture", ["/p"], 0),
        (200, b"pict", ["/p"], 1),
        (404, b"picture", ["/p"], 1),
        (200, b"picture", [], 1),
    ):
        run = a_run(Answering(status, content))
        asyncio.run(run.picture({"id": "a", "pictures": pictures}, 0))
        assert len(run.wrong) == wrong, (status, content, pictures)


def test_what_is_left_in_the_store_is_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = Store(folder, 1e9)
    work = {"mode": "txt2img", "model": "m", "options": {}, "output": {}}
    job = Job("c", 0, 1e10, work, key="k", state="done")
    store.add(job, [])
    job.files = store.write_pictures(job, [b"picture"], "png")
    store.update(job)
    store.close()
    log = tmp_path / "log"
    log.write_text("")

    def wrong() -> list[str]:
        run = a_run()
        run.look_at_rest(folder, log)
        return list(run.wrong)

    assert wrong() == []
    (folder / "pictures" / f".{'0' * 32}-0.png.part").touch()
    (folder / "inputs" / "of nobody").mkdir()
    (folder / "pictures" / job.files[0]).unlink()
    log.write_text("Traceback (most recent call last):\n  File\nKeyError: 1\n")
    assert len(wrong()) == 4
