"""The workers of a scheduler: which one is free, which holds what, and how one that died comes back."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from ..errors import SdcppError
from .jobs import Job
from .worker import LOOK_SECONDS, Outcome, Worker, WorkerLostError

log = logging.getLogger("sdcpp_py.server")

_BACKOFF_SECONDS = 30.0


class Slot:
    """A worker, and what it does.

    Attributes:
        worker: it.
        job: that it is at, None for none.
        is_ready: whether it takes jobs.
        restarts: how often it was started again.
        losses: how often it was lost since it ended a job.
        cancelling: why its job is to end early, None where it is not.
        later: gives the files of the job before, which it makes beside the next one; None where there is none.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.job: Job | None = None
        self.is_ready = False
        self.restarts = 0
        self.losses = 0
        self.cancelling: SdcppError | None = None
        self.later: asyncio.Future[Outcome] | None = None


class Pool:
    """The workers.

    Args:
        workers: not started yet.
        on_ready: called when one takes jobs again.

    Attributes:
        slots: one for each worker.
    """

    def __init__(self, workers: Sequence[Worker], on_ready: Callable[[], object]) -> None:
        self.slots = [Slot(worker) for worker in workers]
        self._on_ready = on_ready
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        for slot in self.slots:
            slot.worker.on_lost = functools.partial(self._lost_idle, slot)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the rest, until the pool is stopped."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def start(self) -> dict[str, Any]:
        """Start the workers, the others while the first one is used; return what that one tells of its engine.

        Raises:
            SdcppError: the engine cannot be loaded, or the worker does not start.
        """
        first, *others = self.slots
        try:
            facts = await first.worker.start()
        except WorkerLostError as error:
            raise SdcppError(f"{error}; its output says why") from None
        first.is_ready = True
        self.spawn(self._look())
        for slot in others:
            self.spawn(self._start(slot))
        return facts

    async def _look(self) -> None:
        """See every second that the workers without a job live, too."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for slot in self.slots:
                if slot.is_ready and slot.job is None:
                    slot.worker.look()

    async def _start(self, slot: Slot, pause: float = 0.0) -> None:
        """Start a worker, again and again with growing pauses."""
        while not self._stopping:
            await asyncio.sleep(pause)
            pause = min(max(1.0, 2 * pause), _BACKOFF_SECONDS)
            try:
                await slot.worker.start()
            except (WorkerLostError, SdcppError, OSError) as error:
                log.warning("%s: %s; it is started again in %.0f s", slot.worker.name, error, pause)
                continue
            slot.is_ready = True
            self._on_ready()
            return

    def _lost_idle(self, slot: Slot) -> None:
        """Start a worker again that was lost while it had no job."""
        if slot.is_ready and slot.job is None and not self._stopping:
            slot.is_ready = False
            slot.losses += 1
            self.spawn(self.restart(slot))

    async def restart(self, slot: Slot) -> None:
        """Start a worker again that was lost; the more often that was since it ended a job, the longer the pause."""
        slot.restarts += 1
        await slot.worker.stop()
        await self._start(slot, min(2.0 ** min(slot.losses - 2, 9), _BACKOFF_SECONDS) if slot.losses > 1 else 0.0)

    async def stop(self) -> None:
        """End the workers, and what runs beside."""
        self._stopping = True
        await asyncio.gather(*(slot.worker.stop() for slot in self.slots))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def is_stopping(self) -> bool:
        """Whether the workers are ended, or are about to be."""
        return self._stopping

    @property
    def jobs(self) -> list[Job]:
        """The jobs that workers are at."""
        return [slot.job for slot in self.slots if slot.job is not None]

    def has_idle(self) -> bool:
        """Tell whether a worker takes a job."""
        return any(slot.is_ready and slot.job is None for slot in self.slots)

    def idle_for(self, model: str) -> Slot:
        """Return a worker that takes a job: one that holds its model if there is such."""
        idle = [slot for slot in self.slots if slot.is_ready and slot.job is None]
        # Of the others the one that holds least, which need not give anything back.
        return min(idle, key=lambda each: (model not in each.worker.loaded, sum(each.worker.loaded.values())))

    def at(self, job: Job) -> Slot | None:
        """Return the worker that is at a job, None for none."""
        return next((slot for slot in self.slots if slot.job is job), None)

    def loaded(self, models: Iterable[str]) -> dict[str, list[str]]:
        """Return the names of the workers that hold each model."""
        return {name: [slot.worker.name for slot in self.slots if name in slot.worker.loaded] for name in models}

    async def unload(self, model: str) -> None:
        """Have every worker give a model back."""
        await asyncio.gather(*(slot.worker.unload(model) for slot in self.slots if model in slot.worker.loaded))
