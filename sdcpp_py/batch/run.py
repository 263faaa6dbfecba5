"""A batch from its options to its end: workers get lines, two each at a time, until all are drawn."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SdcppError
from ..model_files import show_path
from ..options.batching import BatchOptions
from ..options.declare import declared
from ..server.jobs import Job, Limits, StoreError
from ..server.model_list import ServedModel, served_models
from ..server.scheduler import Scheduler
from ..server.worker import Worker
from ..server.workers import make_workers
from .lines import Item, Lines
from .results import Results

BATCHING = declared(BatchOptions)
"""Every option of a batch."""
_ALIKE = 20  # failures in a row with one message, after which the rest would fail, too
_FOREVER = 1e9  # seconds
_CLOSING_SECONDS = 60.0  # for a cancel to be obeyed


class BatchError(SdcppError):
    """Not all pictures of a batch were drawn."""


@dataclass
class Count:
    """How far a batch is.

    Attributes:
        asked: pictures that the lines ask for.
        before: of these, drawn by an earlier run.
        drawn: by this one.
        failed: with a reason, which the index has.
    """

    asked: int
    before: int
    drawn: int = 0
    failed: int = 0

    @property
    def left(self) -> int:
        """How many are neither drawn nor failed."""
        return self.asked - self.before - self.drawn - self.failed


class Batch:
    """One run of a batch.

    Args:
        todo: the pictures that are to be drawn.
        count: how far it is; it is counted on.
        lines: makes requests of them.
        results: keeps them.
        scheduler: gives them to workers; not started yet.
        told: called for each picture that has ended, with its job.
    """

    def __init__(
        self,
        todo: Sequence[Item],
        count: Count,
        lines: Lines,
        results: Results,
        scheduler: Scheduler,
        told: Callable[[Item, Job, Count], object],
    ) -> None:
        self._todo = todo
        self.count = count
        self._lines = lines
        self._results = results
        self._scheduler = scheduler
        self._told = told
        self._under_way: dict[str, Item] = {}
        self._room = asyncio.Event()
        self._stop = asyncio.Event()
        self._alike: tuple[str, int] = ("", 0)
        self._failure: SdcppError | None = None
        scheduler.observers.append(self._ended)

    @property
    def _most(self) -> int:
        """How many jobs the scheduler has at a time: one more for each worker than it draws."""
        return 2 * len(self._scheduler.workers)

    def stop(self) -> None:
        """Begin with nothing any more, and cancel what is under way; what is done is kept."""
        self._stop.set()
        self._room.set()

    async def run(self) -> None:
        """Draw until all is done, or :meth:`stop` is called.

        Raises:
            SdcppError: nothing more can be drawn: no worker starts, the folder cannot be written, or all fails alike.
        """
        await self._scheduler.start()
        try:
            for item in self._todo:
                await self._until(lambda: len(self._under_way) < self._most)
                if self._stop.is_set():
                    break
                await self._submit(item)
            await self._until(lambda: not self._under_way)
        finally:
            self._scheduler.drain(_CLOSING_SECONDS)
            for job in self._scheduler.open_jobs():
                self._scheduler.cancel(job)
            await self._scheduler.stop()
        if self._failure is not None:
            raise self._failure

    async def _until(self, enough: Callable[[], bool]) -> None:
        """Wait until something is so, or the batch is to stop."""
        while not enough() and not self._stop.is_set():
            self._room.clear()
            await self._room.wait()

    async def _submit(self, item: Item) -> None:
        """Give a picture to the scheduler."""
        try:
            request = await asyncio.to_thread(self._lines.request, item)
        except SdcppError as error:  # a picture that went away meanwhile
            self._refused(item, error)
            return
        job = self._scheduler.submit(request, lambda job: self._results.begin(job, item))
        self._under_way[job.id] = item

    def _refused(self, item: Item, error: SdcppError) -> None:
        """Take note of a picture that was not even begun with: the index says why, as of others that failed."""
        asked = {"mode": item.mode, "model": item.model, "options": dict(item.options), "output": dict(item.output)}
        said = {"type": type(error).__name__, "message": str(error)}
        job = Job("", 0, 0.0, asked, source="batch", state="failed", error=said)
        self._results.begin(job.id, item)
        self._under_way[job.id] = item
        with contextlib.suppress(StoreError):  # which the results keep
            self._results.update(job)
        self._ended(job)

    def _ended(self, job: Job) -> None:
        """Take note of a job that has ended."""
        item = self._under_way.pop(job.id)
        if self._results.failure is not None:
            self._failure = self._results.failure
            self.stop()
        elif job.state == "done":
            self.count.drawn += 1
            self._alike = ("", 0)
        elif job.state == "failed" and job.error is not None:
            self.count.failed += 1
            message = f"{job.error['type']}: {job.error['message']}"
            self._alike = (message, self._alike[1] + 1 if self._alike[0] == message else 1)
            if self._alike[1] >= _ALIKE and not self._stop.is_set():
                self._failure = BatchError(f"{_ALIKE} pictures failed alike, the rest was left: {message}")
                self.stop()
        self._told(item, job, self.count)
        self._room.set()


@contextlib.contextmanager
def _interrupts(stop: Callable[[], None], interrupted: list[int]) -> Iterator[None]:
    """Stop at the first signal that ends a command; at the second one everything ends at once, as it does elsewhere."""
    loop = asyncio.get_running_loop()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def take(number: int, _: object) -> None:
        interrupted.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        loop.call_soon_threadsafe(stop)

    for number in before:
        signal.signal(number, take)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _workers(values: Mapping[str, Any], models: Mapping[str, ServedModel]) -> Sequence[Worker]:
    """Return the workers, of this machine or of a cluster."""
    if not values["ray"]:
        return make_workers(values, models)
    from ..server.ray_worker import ray_workers

    return ray_workers(values["ray"], values, models)


def run(
    file: str | os.PathLike[str],
    given: Mapping[str, Any],
    loading: Mapping[str, Any],
    defaults: Mapping[str, Any],
    told: Callable[[Item, Job, Count], object],
    begun: Callable[[Count], object] = lambda count: None,
) -> Count:
    """Draw what the lines of a file ask for, but what is there already.

    Args:
        file: of the lines.
        given: options of :class:`BatchOptions`.
        loading: options of loading the one model, where no models file is given.
        defaults: options of drawing that lines have unless they say otherwise.
        told: called for each picture that has ended.
        begun: called with what there is to do, before anything is drawn.

    Returns:
        What was done; its ``left`` is 0.

    Raises:
        LinesError: lines are wrong; nothing was drawn.
        BatchError: not all pictures could be drawn.
        KeyboardInterrupt: a signal came; what was done before is kept.
        SdcppError: an option is wrong, the engine cannot be loaded, or the folder cannot be written.
    """
    values = {name: option.check(given.get(name, option.default)) for name, option in BATCHING.items()}
    models = served_models(values, loading, here=not values["ray"])
    output = {name: values[name] for name in ("format", "compression") if values[name] is not None}
    lines = Lines(models, Path(file).parent, defaults, output)
    items = lines.read(Path(file))
    results = Results(Path(values["output"]), None if values["index"] is None else Path(values["index"]))
    interrupted: list[int] = []
    try:
        todo = results.expect(items)
        count = Count(len(items), len(items) - len(todo))
        begun(count)

        async def draw() -> None:
            limits = Limits(queue=1 << 30, client_queue=1 << 30, job_seconds=_FOREVER)
            scheduler = Scheduler(models, _workers(values, models), results, limits)
            batch = Batch(todo, count, lines, results, scheduler, told)
            with _interrupts(batch.stop, interrupted):
                await batch.run()

        if todo:
            asyncio.run(draw())
    finally:
        results.close()
    if interrupted:
        sys.stdout.flush()
        signal.raise_signal(interrupted[0])  # whoever waits for the process is told so
        raise KeyboardInterrupt
    if count.failed or count.left:
        said = f"{count.failed + count.left} of {count.asked} pictures could not be drawn"
        raise BatchError(f"{said}; {show_path(results.index)} says why, and the same command tries them again")
    return count
