"""The jobs: taken from clients, kept in the store, given to workers, tried again where a worker dies. No HTTP here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import SdcppError
from .fair_queue import FairQueue
from .jobs import (
    PRIORITIES,
    ConflictError,
    DeadlineError,
    DrainingError,
    Events,
    GivenUpError,
    Job,
    Keeper,
    Limits,
    QueueFullError,
    RefusedError,
    Request,
    State,
    StoreError,
    UnknownJobError,
)
from .model_list import ServedModel
from .pool import Pool, Slot
from .saving import Saving
from .store import request_digest
from .worker import Outcome, Worker, WorkerLostError

log = logging.getLogger("sdcpp_py.server")

_RECENT = 256  # jobs that have ended, whose events are still there to read
_MOST_BEGUN = 5  # times, over all starts of the server: a job that ends the whole of it is not drawn for ever


class Scheduler:
    """Gives jobs to workers.

    Args:
        models: those that are served, the default one first.
        workers: not started yet.
        store: where jobs and pictures are kept.
        limits: what it takes.
        told: returns what clients are told of an error, or of a result; by default all.

    Attributes:
        facts: what the first worker told of its engine.
        events: what happened to any job; each event's data has the job.
        draining: whether it takes nothing new any more.
        observers: called with each job that ended, for metrics.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        workers: Sequence[Worker],
        store: Keeper,
        limits: Limits | None = None,
        told: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        self.models = dict(models)
        self.store = store
        self.limits = limits or Limits()
        self.facts: dict[str, Any] = {}
        self.events = Events()
        self.draining = False
        self.observers: list[Callable[[Job], object]] = []
        self._pool = Pool(workers, self._dispatch)
        self._queue = FairQueue()
        self._active: dict[str, Job] = {}
        self._recent: OrderedDict[str, Job] = OrderedDict()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._took: deque[float] = deque([5.0], maxlen=32)  # seconds that jobs took
        self._drained = 0.0
        self._settling: dict[str, Job] = {}  # jobs that are drawn, and whose pictures are being written
        self._told = told
        self._saving = Saving(store, self._pool, self._dispatch)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the workers, and go on with the jobs that an earlier server left.

        Raises:
            SdcppError: the engine cannot be loaded, or no worker starts.
        """
        self.facts = await self._pool.start()
        for job in self.store.unfinished():
            job.state = "queued"
            self._admit(job)
            if job.attempts >= _MOST_BEGUN:
                said = f"the server or a worker ended each of the {job.attempts} times that it was drawn; ask for less"
                self.cancel(job, GivenUpError(said))
        self._dispatch()

    def drain(self, seconds: float = 0.0) -> None:
        """Take nothing new, and begin with nothing that waits; who waits for that is told so.

        Args:
            seconds: that what is under way has left; then those who wait for it are told, too. Asked for again, it
                can only become less.
        """
        if self.draining:
            self._drained = min(self._drained, time.monotonic() + seconds)
            return
        self.draining = True
        self._drained = time.monotonic() + seconds
        for job in self._queue:
            job.events.close()
        self.events.close()
        asyncio.get_running_loop().call_later(seconds, self._close_events)

    def _close_events(self) -> None:
        """Tell whoever waits for a job that it will not end here."""
        for job in self._active.values():
            job.events.close()

    async def drained(self) -> None:
        """Return when nothing is under way any more, or the time is over that :meth:`drain` gave."""
        while (self._pool.jobs or self._settling) and time.monotonic() < self._drained:
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End when the time is over that :meth:`drain` gave; what is not done waits in the store for the next start."""
        if not self.draining:
            self.drain()
        await self.drained()
        for timer in self._timers.values():
            timer.cancel()
        left = [*self._pool.jobs, *self._settling.values()]
        await self._pool.stop()
        for job in left:
            if not job.is_over:
                job.state, job.attempts = "queued", max(0, job.attempts - 1)
                self._saving.save(job)
        self._saving.save_left()
        self._close_events()

    # --- jobs ---------------------------------------------------------------------------------------------------------

    @property
    def default_model(self) -> str:
        """The name of the model that draws where a request names none."""
        return next(name for name, each in self.models.items() if each.kind == "model")

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._queue)

    @property
    def running(self) -> list[Job]:
        """The jobs that workers are at."""
        return self._pool.jobs

    def open_jobs(self) -> list[Job]:
        """Return the jobs that have not ended: those that workers are at, and then those that wait."""
        return [*self.running, *self._queue]

    @property
    def workers(self) -> Sequence[Slot]:
        """The workers, with what they do."""
        return self._pool.slots

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken and a worker is there for them."""
        return not self.draining and any(slot.is_ready for slot in self.workers)

    def retry_after(self, ahead: int) -> float:
        """Return the seconds in which so many jobs are done, roughly."""
        each = sum(self._took) / len(self._took)
        return max(1.0, min(3600.0, ahead * each / len(self.workers)))

    def submit(self, request: Request, known: Callable[[str], object] = lambda job: None) -> Job:
        """Take a job, and keep it: from here on it ends done, failed or cancelled, whatever becomes of any process.

        Args:
            request: what is asked for.
            known: called with the job's id before anything is done with it.

        Raises:
            DrainingError: the server is ending.
            QueueFullError: as many jobs wait as may.
            RefusedError: there is no such model, or the priority is out of range.
            ConflictError: the key was used before for another request.
            StoreError: it cannot be kept.
        """
        if request.model not in self.models:
            raise RefusedError(f"model {request.model!r} is not served; there are {', '.join(self.models)}")
        if request.priority not in PRIORITIES:
            raise RefusedError(f"priority must be from {PRIORITIES[0]} to {PRIORITIES[-1]}, not {request.priority}")
        work = request.work()
        digest = request_digest(work, request.pictures) if request.key else ""
        if request.key and (before := self._by_key(request.client, request.key)) is not None:
            if before.digest != digest:
                raise ConflictError("this idempotency key was used for another request; use a new one")
            return before
        if self.draining:
            raise DrainingError("the server is ending; ask again when it is back")
        if (waiting := len(self._queue)) >= self.limits.queue:
            raise QueueFullError("as many jobs wait as may; ask again later", self.retry_after(1 + waiting // 4))
        if (own := self._queue.count(request.client)) >= self.limits.client_queue:
            raise QueueFullError(f"{own} jobs of this client wait, as many as may; ask later", self.retry_after(1))
        seconds = min(request.seconds or self.limits.job_seconds, self.limits.job_seconds)
        job = Job(
            client=request.client,
            priority=request.priority,
            deadline=time.time() + seconds,
            request=work,
            inputs=len(request.pictures),
            key=request.key,
            digest=digest,
            source=request.source,
        )
        known(job.id)
        self.store.add(job, request.pictures)
        self._admit(job)
        self._dispatch()
        return job

    def _by_key(self, client: str, key: str) -> Job | None:
        """Return the job of an idempotency key."""
        found = self.store.by_key(client, key)
        return None if found is None else self.current(found)

    def _admit(self, job: Job) -> None:
        """Put a job that is kept into the queue."""
        self._active[job.id] = job
        self._queue.add(job)
        # From here on by a clock that nobody sets.
        self._fail_at(job, asyncio.get_running_loop().time() + job.deadline - time.time())
        self._tell(job, "queued", position=self._queue.position(job))

    def find(self, job: str) -> Job:
        """Return a job.

        Raises:
            UnknownJobError: there is none of this id, or none any more.
        """
        found = self._known(job) or self.store.get(job)
        if found is None:
            raise UnknownJobError(f"there is no job {job[:64]!r}")
        if found.is_over and found.events.is_empty:
            # Of an earlier server: what it came to is all that is left to tell.
            self._tell(found, found.state, everywhere=False)
            found.events.close()
        return found

    def current(self, job: Job) -> Job:
        """Return a job as it is now, of one as the store had it."""
        return self._known(job.id) or job

    def _known(self, job: str) -> Job | None:
        """Return a job of which more is known than the store has."""
        return self._active.get(job) or self._recent.get(job) or self._saving.get(job)

    def position(self, job: Job) -> int:
        """Return roughly how many jobs go before one that waits."""
        return self._queue.position(job) if job in self._queue else 0

    def positions(self) -> dict[str, int]:
        """Return the same of all jobs that wait, by their ids."""
        return self._queue.positions()

    async def finished(self, job: Job) -> Job:
        """Return a job when it has ended.

        Raises:
            DrainingError: the server ends before.
        """
        if not job.is_over:
            async for event in job.events.after():
                if event.kind in ("done", "failed", "cancelled"):
                    break
        if not job.is_over:
            raise DrainingError(f"the server is ending; job {job.id} is drawn after its next start")
        return job

    def cancel(self, job: Job, error: SdcppError | None = None) -> bool:
        """Cancel a job, or fail it with an error; tell whether it was not over yet."""
        if job.is_over:
            return False
        if job in self._queue:
            self._queue.remove(job)
            self._end_early(job, error)
            return True
        slot = self._pool.at(job)
        if slot is None:
            return False
        if slot.cancelling is None:
            slot.cancelling = error or SdcppError("")
            self._pool.spawn(slot.worker.cancel(job.id))
        return True

    def _end_early(self, job: Job, error: SdcppError | None) -> None:
        """End a job that was cancelled, or failed for another reason than its own."""
        if error is None or not str(error):
            self._end(job, "cancelled", {"type": "CancelledError", "message": "cancelled by a client"})
        else:
            self._end(job, "failed", {"type": type(error).__name__, "message": str(error)})

    def _fail_at(self, job: Job, end: float) -> None:
        """Fail a job at a time of the loop's clock."""
        loop = asyncio.get_running_loop()
        self._timers[job.id] = loop.call_later(max(0.0, min(end - loop.time(), 2e6)), self._too_late, job, end)

    def _too_late(self, job: Job, end: float) -> None:
        """Fail a job whose time is over."""
        if end > asyncio.get_running_loop().time() + 0.01:  # beyond what a timer takes at once
            self._fail_at(job, end)
            return
        spent = job.deadline - job.created
        self.cancel(job, DeadlineError(f"it was not done within {round(spent, 2):g} s, waiting included"))

    def remove(self, job: Job) -> None:
        """Forget a job that has ended, and its pictures.

        Raises:
            ConflictError: it has not ended.
        """
        if not job.is_over:
            raise ConflictError("the job has not ended; cancel it first")
        self.store.remove(job)
        self._recent.pop(job.id, None)
        self._saving.forget(job.id)

    async def unload(self, model: str) -> None:
        """Have every worker give a model back."""
        await self._pool.unload(model)

    def loaded(self) -> dict[str, list[str]]:
        """Return the workers that hold each model."""
        return self._pool.loaded(self.models)

    def modes(self, model: str) -> list[str] | None:
        """Return the modes that a model or an upscaler has, None where none of its kind was loaded yet."""
        told = (slot.worker.modes.get(model) for slot in self._pool.slots)
        known = next((each for each in told if each is not None), self.models[model].modes)
        return None if known is None else list(known)

    # --- workers ------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give the next jobs to the workers that have none, each to one that holds its model if there is such."""
        while not self.draining and not self._saving.is_full and self._pool.has_idle():
            if (job := self._queue.next()) is None:
                return
            slot = self._pool.idle_for(job.request["model"])
            self._queue.take(job)
            slot.job, slot.cancelling = job, None
            self._pool.spawn(self._run(slot, job))

    async def _run(self, slot: Slot, job: Job) -> None:
        """Have a worker draw a job."""
        job.attempts += 1
        job.worker = slot.worker.name
        job.started = time.time()
        job.state = "running" if job.request["model"] in slot.worker.loaded else "loading"
        self._tell(job, job.state)
        asyncio.get_running_loop().call_soon(self._saving.save, job)  # when the worker has it
        begin = time.monotonic()
        try:
            outcome = await (self._drawn if job.attempts == 1 else self._drawn_alone)(slot, job)
            slot.later = outcome.later
        except WorkerLostError as error:
            if not self._pool.is_stopping:
                await self._lost(slot, job, error)
            return
        if slot.cancelling is None:
            self._took.append(time.monotonic() - begin)
        cancelling = slot.cancelling
        slot.job, slot.losses = None, 0
        self._settling[job.id] = job
        self._dispatch()  # the worker draws on while this one's pictures are written
        try:
            await self._settle(job, outcome, cancelling)
        finally:
            del self._settling[job.id]

    async def _drawn_alone(self, slot: Slot, job: Job) -> Outcome:
        """Return how a job ended, with its files, nothing beside it: no other job ends the worker this time."""
        if slot.later is not None:
            await asyncio.wait([slot.later])
        outcome = await self._drawn(slot, job)
        return outcome if outcome.later is None else await outcome.later

    async def _drawn(self, slot: Slot, job: Job) -> Outcome:
        """Return how a job ended in a worker; whatever goes wrong on the way there is a failure of this job alone."""
        try:
            pictures = await asyncio.to_thread(self.store.inputs, job) if job.inputs else []
            if slot.cancelling is not None:  # meanwhile: the worker did not know it yet
                return Outcome(error={"type": "CancelledError", "message": "cancelled before it was begun"})
            return await slot.worker.run(
                job.id, job.request, pictures, lambda event, preview: self._progress(job, event, preview)
            )
        except WorkerLostError:
            raise
        except SdcppError as error:
            return Outcome(error={"type": type(error).__name__, "message": str(error)})
        except Exception:
            log.exception("job %s", job.id)
            return Outcome(error={"type": "InternalError", "message": "the server failed at this; its log says why"})

    async def _settle(self, job: Job, outcome: Outcome, cancelling: SdcppError | None) -> None:
        """Keep how a job ended."""
        if outcome.later is not None:
            try:
                outcome = await outcome.later
            except WorkerLostError as error:
                self._again(job, error)
                return
        if outcome.files:
            suffix = job.request["output"].get("format") or ("webp" if "frames" in (outcome.result or {}) else "png")
            try:
                job.files = await self._saving.write_pictures(job, outcome.files, suffix)
            except StoreError as error:
                self._end(job, "failed", {"type": "StoreError", "message": str(error)})
                return
            job.result = None if outcome.result is None else self._told(outcome.result)
        if outcome.error is None:
            self._end(job, "done")
        elif cancelling is not None and outcome.error["type"] == "CancelledError":
            self._end_early(job, cancelling)
        else:
            self._end(job, "failed", outcome.error)

    async def _lost(self, slot: Slot, job: Job, error: WorkerLostError) -> None:
        """Try a job again whose worker died, or end it; start the worker anew."""
        slot.job, slot.is_ready = None, False
        slot.losses += 1
        # What it never got it is not counted for; but where reading it is what ends workers, that is not for ever.
        job.attempts -= not error.begun and slot.losses == 1
        if slot.cancelling is not None:
            self._end_early(job, slot.cancelling)
        else:
            self._again(job, error)
        await self._pool.restart(slot)

    def _again(self, job: Job, error: WorkerLostError) -> None:
        """Try a job again whose worker died, or end it."""
        if self._pool.is_stopping:
            return  # the next start draws it
        log.warning("job %s: %s", job.id, error)
        if job.attempts < self.limits.attempts:
            job.state = "queued"
            self._saving.save(job)
            self._queue.add(job)
            self._tell(job, "retried", **self._told({"reason": str(error)}), attempts=job.attempts)
        else:
            message = f"{error}, as in the attempt before; ask for less, or look at the server's log"
            self._end(job, "failed", error.said or {"type": "WorkerLostError", "message": message})
        self._dispatch()

    def _progress(self, job: Job, event: dict[str, Any], preview: bytes | None) -> None:
        """Take what a worker says of a job under way."""
        if job.state == "loading" and event.get("phase") not in ("loading", "done"):
            self._enter(job, "running")
        job.progress = event
        job.preview = preview or job.preview
        job.events.add("progress", event, preview)

    # --- states -------------------------------------------------------------------------------------------------------

    def _tell(self, job: Job, kind: str, everywhere: bool = True, **more: Any) -> None:
        """Say what happened to a job to whoever listens."""
        data = {**job.to_dict(), **more}
        job.events.add(kind, data)
        if everywhere:
            self.events.add(kind, data)

    def _enter(self, job: Job, state: State) -> None:
        """Bring a job into a state."""
        job.state = state
        self._saving.save(job)
        self._tell(job, state)

    def _end(self, job: Job, state: State, error: dict[str, Any] | None = None) -> None:
        """End a job."""
        if error is not None and state == "failed":
            log.warning("job %s: %s", job.id, "; ".join((error["message"], *error.get("engine_log", ()))))
        job.error, job.ended = error and self._told(error), time.time()
        if (timer := self._timers.pop(job.id, None)) is not None:
            timer.cancel()
        self._active.pop(job.id, None)
        self._recent[job.id] = job
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        self._enter(job, state)
        job.events.close()
        self.store.done_with_inputs(job)
        for observe in self.observers:
            observe(job)
