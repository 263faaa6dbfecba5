"""Jobs, with workers that are told what to do: no process is started here."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sdcpp_py.errors import SdcppError
from sdcpp_py.server.fair_queue import FairQueue
from sdcpp_py.server.jobs import (
    ConflictError,
    DrainingError,
    Events,
    Job,
    Limits,
    QueueFullError,
    RefusedError,
    UnknownJobError,
)
from sdcpp_py.server.pool import Pool, Slot
from sdcpp_py.server.store import Store
from sdcpp_py.server.worker import Outcome, WorkerLostError
from support.fake_worker import FakeWorker
from support.scheduling import asked, run, scheduling


def test_clients_are_served_alike() -> None:
    """Whoever asks for more, or comes later, has as many turns as the others from then on; priorities go before."""
    queue = FairQueue()
    for number in range(20):
        queue.add(Job("many", 0, 0.0, asked(f"many {number}").work(), created=number))
    turns = []

    def serve(count: int) -> None:
        for _ in range(count):
            job = queue.next()
            assert job is not None
            queue.take(job)
            turns.append(job.client)

    serve(4)
    for number in range(3):
        queue.add(Job("few", 0, 0.0, asked(f"few {number}").work(), created=100 + number))
    serve(6)
    assert turns[4:].count("few") == 3
    large = asked("large", options={"batch_count": 4}).work()
    for number in range(4):
        queue.add(Job("large", 0, 0.0, large, created=200 + number))
    serve(5)
    assert turns[10:].count("large") == 1
    queue.add(Job("many", 1, 0.0, asked("first").work(), created=300))
    first = queue.next()
    assert first is not None
    assert first.request["options"]["prompt"] == "first"
    assert queue.positions() == {job.id: queue.position(job) for job in queue}
    for number in range(3000):
        queue.add(Job("many", 0, 0.0, asked("x").work(), created=1000 + number))
    begin = time.perf_counter()
    assert len(set(queue.positions().values())) == len(queue)
    assert time.perf_counter() - begin < 0.5  # one by one it would be seconds
    queue.remove(first)
    assert queue.next() is not first


def test_a_job_survives_what_becomes_of_its_worker(tmp_path: Path) -> None:
    async def work() -> None:
        once, twice = FakeWorker("once", deaths=1), FakeWorker("twice", deaths=2)
        async with scheduling(tmp_path / "1", [once]) as scheduler:
            job = scheduler.submit(asked(pictures=[b"in"]))
            await scheduler.finished(job)
            assert (job.state, job.attempts, once.starts) == ("done", 2, 2)
            assert [scheduler.store.picture(job, index).read_bytes() for index in (0, 1)] == [b"picture", b"in"]  # type: ignore[union-attr]
            kinds = [event.kind async for event in job.events.after()]
            assert kinds.count("retried") == 1
            assert kinds[-1] == "done"
            assert once.on_lost is not None
            once.on_lost()  # while it has no job
            job = await scheduler.finished(scheduler.submit(asked()))
            assert (job.state, job.attempts, once.starts) == ("done", 1, 3)
            (slot,) = scheduler.workers
            assert slot.restarts == 2
        async with scheduling(tmp_path / "2", [twice]) as scheduler:
            job = await scheduler.finished(scheduler.submit(asked()))
            assert (job.state, job.error["type"]) == ("failed", "WorkerLostError")  # type: ignore[index]
            assert "signal 9" in job.error["message"]  # type: ignore[index]
            job = await scheduler.finished(scheduler.submit(asked("fail")))
            assert job.error == {"type": "DeviceMemoryError", "message": "too large"}
            assert (await scheduler.finished(scheduler.submit(asked()))).state == "done"

    run(work)


def test_what_ends_workers_or_the_server_each_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With growing pauses, also where a worker ends before it has the job, and where the whole server does."""

    class Unread(FakeWorker):
        said: dict[str, Any] | None = None

        async def run(self, *given: Any) -> Outcome:
            error = WorkerLostError(f"{self.name} ended")
            error.begun, error.said = False, self.said
            raise error

    pauses: list[float] = []
    start = Pool._start

    async def at_once(pool: Pool, slot: Slot, pause: float = 0.0) -> None:
        pauses.append(pause)
        await start(pool, slot)

    monkeypatch.setattr(Pool, "_start", at_once)

    async def work() -> None:
        async with scheduling(tmp_path / "1", [Unread()]) as scheduler:
            job = await scheduler.finished(scheduler.submit(asked()))
            assert (job.state, job.error["type"], len(pauses)) == ("failed", "WorkerLostError", 3)  # type: ignore[index]
            said = {"type": "MemoryError", "message": "there is not enough memory"}
            scheduler.workers[0].worker.said = said  # type: ignore[attr-defined]
            for _ in range(4):
                job = await scheduler.finished(scheduler.submit(asked()))
                assert job.error == said
            assert pauses[:4] == [0.0, 1.0, 2.0, 4.0]
            assert max(pauses) == 30.0
        worker = FakeWorker()
        worker.held.clear()
        async with scheduling(tmp_path / "2", [worker]) as scheduler:
            taken = [scheduler.submit(asked(prompt)) for prompt in ("fatal", "next")]
            await asyncio.sleep(0.05)
            taken[0].attempts = 5
            scheduler.store.update(taken[0])
            monkeypatch.setattr(scheduler.store, "update", lambda job: None)  # as if it had been killed here
        worker = FakeWorker()
        async with scheduling(tmp_path / "2", [worker]) as scheduler:
            fatal, other = (scheduler.find(job.id) for job in taken)
            await scheduler.finished(other)
            assert (fatal.state, fatal.error["type"]) == ("failed", "GivenUpError")  # type: ignore[index]
            assert worker.drawn == ["next"]

    run(work)


def test_a_worker_draws_on_while_files_are_made(tmp_path: Path) -> None:
    """And a job whose files do not come is drawn again, also where the server ends."""

    class Writer(FakeWorker):
        def __init__(self) -> None:
            super().__init__()
            self.files: list[asyncio.Future[Outcome]] = []

        async def run(self, *given: Any) -> Outcome:
            made = await super().run(*given)
            self.files.append(asyncio.get_running_loop().create_future())
            return Outcome((), made.result, None, self.files[-1])

    async def work() -> None:
        worker = Writer()
        async with scheduling(tmp_path, [worker]) as scheduler:
            jobs = [scheduler.submit(asked(name)) for name in ("first", "second")]
            while len(worker.files) < 2:
                await asyncio.sleep(0.005)
            assert [job.state for job in jobs] == ["running", "running"]
            worker.files[1].set_exception(WorkerLostError("gone"))
            worker.files[0].set_result(Outcome([b"picture"], {"seeds": [1]}))
            assert (await scheduler.finished(jobs[0])).state == "done"
            while len(worker.files) < 3:
                await asyncio.sleep(0.005)
            assert worker.drawn == ["first", "second", "second"]
        again = FakeWorker()
        async with scheduling(tmp_path, [again]) as scheduler:
            job = await scheduler.finished(scheduler.find(jobs[1].id))
            assert (job.state, job.attempts) == ("done", 2)

    run(work)


def test_a_job_that_ends_workers_ends_no_other(tmp_path: Path) -> None:
    """Though the files of the one before it are made meanwhile, again and again."""

    class Mortal(FakeWorker):
        def __init__(self) -> None:
            super().__init__()
            self.files: list[asyncio.Future[Outcome]] = []

        async def run(self, *given: Any) -> Outcome:
            made = await super().run(*given)
            if self.drawn[-1] == "deadly":
                lost = WorkerLostError(f"{self.name} was ended by signal 11")
                for each in self.files:
                    if not each.done():
                        each.set_exception(lost)
                raise lost
            files = asyncio.get_running_loop().create_future()
            self.files.append(files)
            asyncio.get_running_loop().call_later(0.05, lambda: files.done() or files.set_result(made))
            return Outcome((), made.result, None, files)

    async def work() -> None:
        worker = Mortal()
        async with scheduling(tmp_path, [worker]) as scheduler:
            names = ("first", "deadly", "second", "deadly", "third")
            jobs = [scheduler.submit(asked(name, client=name)) for name in names]
            for job in jobs:
                await scheduler.finished(job)
            assert [job.state for job in jobs] == ["done", "failed", "done", "failed", "done"]
            assert max(job.attempts for job in jobs) == 2

    run(work)


def test_jobs_outlive_the_server(tmp_path: Path) -> None:
    """Those that wait, those under way and those that are done; a second server does not take their store."""

    async def work() -> None:
        worker = FakeWorker()
        async with scheduling(tmp_path, [worker]) as scheduler:
            done = await scheduler.finished(scheduler.submit(asked("done", key="k", client="c")))
            worker.held.clear()
            jobs = [scheduler.submit(asked(name, pictures=[b"in"])) for name in ("running", "waiting")]
            await asyncio.sleep(0.05)
            assert [job.state for job in jobs] == ["running", "queued"]
            with pytest.raises(SdcppError, match="in use by another server"):
                Store(tmp_path / "store", 1e9)
            waits = asyncio.create_task(scheduler.finished(jobs[1]))
            scheduler.drain(0.05)
            with pytest.raises(DrainingError):
                scheduler.submit(asked())
            await scheduler.stop()
            with pytest.raises(DrainingError, match=jobs[1].id):
                await waits
        again = FakeWorker()
        async with scheduling(tmp_path, [again]) as scheduler:
            for job in jobs:
                found = await scheduler.finished(scheduler.find(job.id))
                assert (found.state, found.attempts) == ("done", 1)
            assert again.drawn == ["running", "waiting"]
            assert [event.kind async for event in scheduler.find(done.id).events.after()] == ["done"]
            assert scheduler.submit(asked("done", key="k", client="c")).id == done.id
            with pytest.raises(ConflictError):
                scheduler.submit(asked("other", key="k", client="c"))
            # What went in is kept with each job, and goes with it.
            assert [scheduler.store.input(job, 0).read_bytes() for job in jobs] == [b"in", b"in"]  # type: ignore[union-attr]
            assert scheduler.store.bytes == 3 * len(b"picture") + 4 * len(b"in")
            scheduler.remove(scheduler.find(jobs[0].id))
            assert [each.name for each in (tmp_path / "store" / "inputs").iterdir()] == [jobs[1].id]
        store = Store(tmp_path / "store", 1e9)
        assert (store.input(jobs[1], 0) is None, store.bytes) == (False, 2 * len(b"picture") + 2 * len(b"in"))
        store.close()

    run(work)


def test_what_is_too_much_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        worker = FakeWorker()
        worker.held.clear()
        async with scheduling(tmp_path, [worker], Limits(queue=3, client_queue=2)) as scheduler:
            taken = [scheduler.submit(asked(client=client)) for client in "aaab"]
            with pytest.raises(QueueFullError) as caught:
                scheduler.submit(asked(client="c"))
            assert caught.value.retry_after >= 1
            scheduler.cancel(taken[-1])
            with pytest.raises(QueueFullError, match="of this client"):
                scheduler.submit(asked(client="a"))
            for wrong in (asked(model="none"), asked(priority=11)):
                with pytest.raises(RefusedError):
                    scheduler.submit(wrong)
            with pytest.raises(UnknownJobError):
                scheduler.find("none")
            with pytest.raises(ConflictError):
                scheduler.remove(taken[0])

    run(work)


def test_jobs_end_when_they_are_cancelled_or_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        worker = FakeWorker()
        worker.held.clear()
        async with scheduling(tmp_path, [worker]) as scheduler:
            running, waiting, late = (scheduler.submit(asked(seconds=seconds)) for seconds in (0.2, None, 0.1))
            assert scheduler.cancel(waiting)
            assert waiting.state == "cancelled"
            assert not scheduler.cancel(waiting)
            for job in (running, late):
                await scheduler.finished(job)
                assert (job.state, job.error["type"]) == ("failed", "DeadlineError")  # type: ignore[index]
            assert scheduler.store.unfinished() == []
            # However the clock is set meanwhile; and the order is that in which they came.
            clock = time.time
            running, *waiting = (scheduler.submit(asked(name, seconds=0.3)) for name in ("running", "b"))
            monkeypatch.setattr(time, "time", lambda: clock() - 3600)
            waiting += [scheduler.submit(asked(name)) for name in "cd"]
            assert [scheduler.position(job) for job in waiting] == [0, 1, 2]
            for job in (running, waiting[0]):
                await scheduler.finished(job)
                assert (job.state, job.error["type"]) == ("failed", "DeadlineError")  # type: ignore[index]
            for job in waiting[1:]:
                assert scheduler.cancel(job)
                await scheduler.finished(job)
            monkeypatch.setattr(time, "time", clock)
            # While the pictures that go in are read: the worker has not heard of the job yet.
            reading = threading.Event()
            read = scheduler.store.inputs
            monkeypatch.setattr(scheduler.store, "inputs", lambda job: reading.wait(5) and read(job))
            job = scheduler.submit(asked("read", pictures=[b"in"]))
            await asyncio.sleep(0.05)
            assert scheduler.cancel(job)
            await asyncio.sleep(0.05)
            worker.cancelled.clear()  # what a real one does not know it does not keep
            worker.held.set()
            reading.set()
            assert (await scheduler.finished(job)).state == "cancelled"
            assert worker.drawn == []

    run(work)


def test_jobs_go_where_their_model_is_loaded(tmp_path: Path) -> None:
    async def work() -> None:
        first, second = FakeWorker("first"), FakeWorker("second")
        async with scheduling(tmp_path, [first, second]) as scheduler:
            await asyncio.sleep(0.02)
            for model in "ab" * 3:
                await scheduler.finished(scheduler.submit(asked(model, model=model)))
            assert [sorted(set(worker.drawn)) for worker in (first, second)] == [["a"], ["b"]]
            await scheduler.unload("a")
            assert scheduler.loaded() == {"a": [], "b": ["second"]}

    run(work)


def test_slow_readers_hold_nobody_up() -> None:
    """Nor memory: of what was shown on the way little is kept when a job has ended."""

    async def work() -> None:
        events = Events()
        slow, seen = events.after(), []
        for number in range(2000):
            events.add("progress", {"number": number}, b"preview")
        seen.append((await anext(slow)).data["number"])
        for number in range(2000, 2010):
            events.add("progress", {"number": number})
        events.close()
        seen += [event.data["number"] async for event in slow]
        assert len(seen) <= 600
        assert seen == sorted(seen)
        assert seen[-1] == 2009
        assert 1 <= len([event async for event in events.after() if event.preview]) <= 4

    run(work)
