"""A worker from the front's side, wherever it is: what it is told, what it says, and when it counts as gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ..errors import BackendError
from .frames import Frame
from .model_list import ServedModel

log = logging.getLogger("sdcpp_py.server")

BEAT_SECONDS = 20.0
"""Without a beat for so long a worker is gone, though its process may be there."""
CANCEL_SECONDS = 20.0
"""What a worker has left for a cancel; then it is replaced."""
LOOK_SECONDS = 1.0
"""Between two looks at whether a worker lives."""
_STOPPED = "was stopped"

Told = Callable[[dict[str, Any], bytes | None], None]
"""Hears of a job's progress, with the fields of ProgressEvent, and of previews."""


class WorkerLostError(Exception):
    """A worker died, hung, or was killed; the message says why.

    Attributes:
        begun: whether it may have begun with the job.
        said: what it said of its end, as of an error of the job; None where it said nothing.
    """

    begun = True
    said: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended in a worker.

    Attributes:
        files: its pictures.
        result: what else there is to tell, None where it failed.
        error: type, message and engine_log of its failure.
        later: gives the outcome with its files, which the worker makes while it draws on, or raises WorkerLostError;
            None where this is it.
    """

    files: Sequence[bytes] = ()
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    later: asyncio.Future[Outcome] | None = None


class Worker(Protocol):
    """What the scheduler needs of a worker, wherever it is.

    Attributes:
        name: for people.
        loaded: the models that it holds, with the bytes of their weights.
        modes: of the models that it has held until now, the modes that each has.
        resident: bytes of memory that it has; 0 where that is not known.
        on_lost: called when it is lost while it has no job; None for nobody.
    """

    name: str
    loaded: Mapping[str, int]
    modes: Mapping[str, Sequence[str]]
    resident: int
    on_lost: Callable[[], object] | None

    async def start(self) -> dict[str, Any]:
        """Start it, and return what it tells of its engine; raise WorkerLostError or SdcppError."""

    async def run(self, job: str, request: Mapping[str, Any], pictures: Sequence[bytes], told: Told) -> Outcome:
        """Return how a job ended, or raise WorkerLostError."""

    async def cancel(self, job: str) -> None:
        """Have a job end soon, as failed with CancelledError; a worker that does not obey is lost."""

    async def unload(self, model: str) -> None:
        """Have it give a model back."""

    def look(self) -> None:
        """See that it lives while it has no job, and end it where it does not; called every second."""

    async def stop(self) -> None:
        """End it."""


@dataclass
class FramedWorker:
    """A worker that is spoken to in frames; those derived from it say by what way, and start and end it.

    Attributes:
        name: for people.
        models: those that it may load.
        device: the runtime backend of models that name none; empty for the engine's choice.
        threads: CPU threads of models that name none; None for as many as there are cores.
        budget: bytes of weights that it keeps; None for half of the memory where it is.
        idle_unload: seconds after which an idle model is unloaded; 0 for never.
        hang_seconds: without progress of a job, after which it is replaced.
        devices: of all workers, which are looked for when it starts.
    """

    name: str
    models: Sequence[ServedModel]
    device: str = ""
    threads: int | None = None
    budget: float | None = None
    idle_unload: float = 0.0
    hang_seconds: float = 900.0
    devices: Sequence[str] = ()
    loaded: Mapping[str, int] = field(default_factory=dict)
    modes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    resident: int = 0
    on_lost: Callable[[], object] | None = None
    _reader: asyncio.Task[None] | None = None
    _ready: asyncio.Future[dict[str, Any]] | None = None
    _outcome: asyncio.Future[Outcome] | None = None
    _writing: dict[str, asyncio.Future[Outcome]] = field(default_factory=dict)
    _told: Told | None = None
    _heard: float = 0.0
    _moved: float = 0.0
    _cancelled: float = 0.0
    _looked: float = 0.0
    _reason: str = ""

    def _post(self, message: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Have a frame sent after those before it; raise WorkerLostError where nobody takes it."""
        raise NotImplementedError

    async def _posted(self) -> None:
        """Return when there is room for the next frame, or raise WorkerLostError."""

    async def _send(self, message: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Send a frame, or raise WorkerLostError."""
        self._post(message, blobs)
        await self._posted()

    def _end(self) -> None:
        """End it at once; whoever listens to it hears its end."""
        raise NotImplementedError

    async def _started(self, seconds: float) -> dict[str, Any]:
        """Tell what is there to listen of what it needs to know, and return what it tells of its engine.

        Raises:
            WorkerLostError: it ended at once, or does not answer for so many seconds.
            BackendError: the engine cannot be loaded there.
        """
        assert self._ready is not None
        first = {
            "type": "start",
            "models": [asdict(each) for each in self.models],
            "device": self.device,
            "devices": [*self.devices],
            "threads": self.threads,
            "budget": self.budget,
            "idle_unload": self.idle_unload,
        }
        try:
            await self._send(first)
            return await asyncio.wait_for(asyncio.shield(self._ready), seconds)
        except asyncio.TimeoutError:
            await self.stop()
            raise WorkerLostError(f"{self.name} did not start within {seconds:.0f} s") from None
        except BaseException:
            await self.stop()
            raise

    def _lost(self, how: str) -> None:
        """Say to whoever waits for it that it has ended."""
        self.loaded, self.resident = {}, 0
        lost = WorkerLostError(f"{self.name} {self._reason or how}")
        for future in (self._ready, self._outcome, *self._writing.values()):
            if future is not None and not future.done():
                future.set_exception(lost)
                future.exception()  # nobody may wait for it
        if self._outcome is None and self._reason != _STOPPED and self.on_lost is not None:
            log.warning("%s", lost)
            self.on_lost()

    def _take(self, frame: Frame) -> None:
        """Take one frame."""
        message, kind = frame.message, frame.message["type"]
        self._heard = time.monotonic()
        if kind == "beat":
            self.loaded, self.resident = message["loaded"], message["resident"]
            self.modes = {**self.modes, **message["modes"]}
        elif kind == "event":
            self._moved = self._heard
            if self._told is not None:
                self._told(message["event"], frame.blobs[0] if frame.blobs else None)
        elif kind == "ready" and self._ready is not None and not self._ready.done():
            self._ready.set_result(message["facts"])
        elif kind == "broken" and self._ready is not None and not self._ready.done():
            self._ready.set_exception(BackendError(message["error"]["message"]))
        elif kind == "starved" and self._outcome is not None and not self._outcome.done():
            lost = WorkerLostError(f"{self.name} had no memory")
            lost.said = message["error"]
            self._outcome.set_exception(lost)
        elif kind in ("drawn", "failed") and self._outcome is not None and not self._outcome.done():
            later = None
            if kind == "drawn":
                self._writing[message["id"]] = asyncio.get_running_loop().create_future()
                later = asyncio.ensure_future(self._written(message["id"]))
            self._outcome.set_result(Outcome((), message.get("result"), message.get("error"), later))
        elif kind == "written" and (writing := self._writing.get(message["id"])) is not None and not writing.done():
            writing.set_result(Outcome(frame.blobs, message.get("result"), message.get("error")))

    async def run(self, job: str, request: Mapping[str, Any], pictures: Sequence[bytes], told: Told) -> Outcome:
        """Return how a job ended.

        Raises:
            WorkerLostError: it ended, or was ended since it hung.
        """
        self._outcome = asyncio.get_running_loop().create_future()
        self._told = told
        self._moved = self._heard = self._looked = time.monotonic()
        self._cancelled = 0.0
        sending: asyncio.Future[None] | None = None
        try:
            self._post({"type": "job", "id": job, "request": dict(request)}, pictures)
            # Looked after meanwhile: one that reads nothing any more does not take a large picture.
            sending = asyncio.ensure_future(self._posted())
            while True:
                waited: list[asyncio.Future[Any]] = [self._outcome, *([] if sending.done() else [sending])]
                await asyncio.wait(waited, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
                if self._outcome.done():
                    return self._outcome.result()
                self._watch()
        except WorkerLostError as error:
            error.begun = sending is not None and sending.done() and sending.exception() is None
            raise
        finally:
            if sending is not None:
                sending.cancel()
            self._outcome = self._told = None

    async def _written(self, job: str) -> Outcome:
        """Return a job's outcome with its files."""
        begin = time.monotonic()
        try:
            while True:
                done, _ = await asyncio.wait([self._writing[job]], timeout=LOOK_SECONDS)
                if done:
                    return self._writing[job].result()
                self._watch(only_beats=True)
                if time.monotonic() - begin > self.hang_seconds:
                    self.kill(f"made no files for {self.hang_seconds:.0f} s")
        finally:
            del self._writing[job]

    def _watch(self, only_beats: bool = False) -> None:
        """End it if it does not live as it should."""
        now = time.monotonic()
        if (still := now - self._looked) > 2 * LOOK_SECONDS:
            # This process stood still itself, and has yet to hear what was said meanwhile.
            self._heard, self._moved = min(now, self._heard + still), min(now, self._moved + still)
            self._cancelled = self._cancelled and min(now, self._cancelled + still)
        self._looked = now
        if now - self._heard > BEAT_SECONDS:
            self.kill(f"did not answer for {BEAT_SECONDS:.0f} s")
        elif only_beats:
            return
        elif now - self._moved > self.hang_seconds:
            self.kill(f"made no progress for {self.hang_seconds:.0f} s")
        elif self._cancelled and now - self._cancelled > CANCEL_SECONDS:
            self.kill(f"did not obey a cancel for {CANCEL_SECONDS:.0f} s")

    def look(self) -> None:
        """See that it lives while it has no job: the next one would find it out late."""
        self._watch(only_beats=True)

    def kill(self, reason: str) -> None:
        """End it at once; whoever waits for it hears the reason."""
        self._reason = self._reason or reason
        self._end()

    async def cancel(self, job: str) -> None:
        """Have a job end soon."""
        self._cancelled = self._cancelled or time.monotonic()
        with contextlib.suppress(WorkerLostError):
            await self._send({"type": "cancel", "id": job})

    async def unload(self, model: str) -> None:
        """Have it give a model back, after the job under way."""
        with contextlib.suppress(WorkerLostError):
            await self._send({"type": "unload", "model": model})

    async def stop(self) -> None:
        """End it: it has nothing to lose."""
        self.kill(_STOPPED)
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=10.0)
