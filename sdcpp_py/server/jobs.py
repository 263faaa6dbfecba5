"""What a job is, what keeps it, what happens to it, and the errors that it may end with."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from ..errors import SdcppError

State = Literal["queued", "loading", "running", "done", "failed", "cancelled"]
ENDED: frozenset[str] = frozenset({"done", "failed", "cancelled"})
PRIORITIES = range(-10, 11)
_EVENTS = 512  # of a job that are kept; a reader that is slower than that misses the oldest
_PREVIEWS = 4  # that are kept of a job that has ended: of many jobs all would be much


class ServerError(SdcppError):
    """Base of what the server itself refuses or fails at."""


class QueueFullError(ServerError):
    """As many jobs wait as may.

    Args:
        message: one line.
        retry_after: seconds after which there may be room.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DrainingError(ServerError):
    """The server is ending, and takes nothing new."""


class StoreError(ServerError):
    """The store cannot be written: its disk is full, or it is gone.

    Args:
        message: one line.
        lasts: whether trying again is of no use.
    """

    def __init__(self, message: str, lasts: bool = False) -> None:
        super().__init__(message)
        self.lasts = lasts


class DeadlineError(ServerError):
    """A job was not done within its time."""


class GivenUpError(ServerError):
    """Each time that a job was under way its process or the server ended."""


class UnknownJobError(ServerError):
    """There is no such job."""


class UnknownModelError(UnknownJobError):
    """There is no such model."""


class ConflictError(ServerError):
    """A key was used before for another request, or a job is in a state in which that cannot be done."""


class RefusedError(ServerError):
    """A request is larger than this server takes, or asks for what it does not give."""


@dataclass(frozen=True)
class Request:
    """What a client asks for.

    Attributes:
        mode: the mode's name.
        model: the name of the model or upscaler.
        options: of the mode, as JSON; a picture is the index of its file in *pictures*.
        pictures: the files of the pictures that go in.
        output: ``format`` and ``compression`` of what comes out.
        otherwise: the mode that is taken where the model cannot do *mode*; empty for an error.
        client: who asks, for fairness.
        priority: higher goes first.
        seconds: after which it ends unfinished; None for the server's own limit.
        key: idempotency key; the same of one client gives the same job.
        source: the API that it came through.
        notes: what the client is told besides: of what it asked for and has no equal here.
        keep_finished: whether it ends with the pictures that are done when it is cancelled.
        leave_idle: whether what would do nothing on the model is left out with a warning, and is no error.
    """

    mode: str
    model: str
    options: Mapping[str, Any]
    pictures: Sequence[bytes] = ()
    output: Mapping[str, Any] = field(default_factory=dict)
    otherwise: str = ""
    client: str = ""
    priority: int = 0
    seconds: float | None = None
    key: str = ""
    source: str = "api"
    notes: Sequence[str] = ()
    keep_finished: bool = False
    leave_idle: bool = False

    def work(self) -> dict[str, Any]:
        """Return what a worker needs of it, as JSON."""
        return {
            "mode": self.mode,
            "model": self.model,
            "options": dict(self.options),
            "output": dict(self.output),
            "otherwise": self.otherwise,
            "notes": list(self.notes),
            "keep_finished": self.keep_finished,
            "leave_idle": self.leave_idle,
        }


@dataclass
class Job:
    """One job, as the scheduler and the store have it.

    Attributes:
        id: 128 random bits as text; who knows it may see the job.
        client: who asked.
        priority: higher goes first.
        created: seconds since 1970, likewise the next three.
        deadline: when it ends unfinished.
        turn: counts the jobs in the order in which they came to the queue, whatever the clock says; 0 before that.
        started: when a worker began with it, None before.
        ended: when it ended, None before.
        state: where it is.
        attempts: how often a worker began with it.
        worker: name of the last one that did, while the server runs.
        request: what a worker needs, as JSON.
        inputs: how many pictures go in.
        files: the names of its pictures in the store, none once they are removed.
        result: what a worker told of it besides the pictures.
        error: type and message of its failure.
        key: idempotency key; empty for none.
        digest: of the request that the key was used for.
        source: the API that it came through.
        progress: the last event of progress.
        preview: the last preview, a JPEG; None before there is one.
    """

    client: str
    priority: int
    deadline: float
    request: dict[str, Any]
    inputs: int = 0
    key: str = ""
    digest: str = ""
    source: str = "api"
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: float = field(default_factory=time.time)
    turn: int = 0
    started: float | None = None
    ended: float | None = None
    state: State = "queued"
    attempts: int = 0
    worker: str = ""
    files: list[str] = field(default_factory=list)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    preview: bytes | None = None
    events: Events = field(default_factory=lambda: Events())

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in ENDED

    @property
    def cost(self) -> float:
        """Roughly the work that it is, in steps of a picture of 512x512; for fairness alone."""
        options = self.request["options"]

        def number(name: str, default: float) -> float:
            value = options.get(name)
            return float(value) if isinstance(value, (int, float)) and value > 0 else default

        pixels = number("width", 512) * number("height", 512) / 512**2
        return number("batch_count", 1) * number("steps", 20) * number("frames", 1) * pixels

    @property
    def warnings(self) -> list[str]:
        """What was asked for and had no effect, or was done otherwise."""
        return [*self.request.get("notes", ()), *(self.result or {}).get("warnings", ())]

    def to_dict(self) -> dict[str, Any]:
        """Return what clients see of it."""
        return {
            "id": self.id,
            "state": self.state,
            "mode": self.request["mode"],
            "model": self.request["model"],
            "client": self.client,
            "priority": self.priority,
            "source": self.source,
            "created": self.created,
            "started": self.started,
            "ended": self.ended,
            "deadline": self.deadline,
            "attempts": self.attempts,
            "worker": self.worker,
            "options": self.request["options"],
            "progress": self.progress,
            "pictures": [f"/api/jobs/{self.id}/pictures/{index}" for index in range(len(self.files))],
            "seeds": (self.result or {}).get("seeds", []),
            "warnings": self.warnings,
            "timings": (self.result or {}).get("timings", {}),
            "error": self.error,
        }


@dataclass(frozen=True)
class Limits:
    """What the scheduler takes.

    Attributes:
        queue: jobs that may wait.
        client_queue: of one client.
        job_seconds: after which a job ends unfinished, waiting included.
        attempts: how often a job is begun with that no worker survives.
    """

    queue: int = 1000
    client_queue: int = 1000
    job_seconds: float = 86400.0
    attempts: int = 2


class Keeper(Protocol):
    """What the scheduler needs of what keeps jobs and pictures; each may raise StoreError."""

    def unfinished(self) -> list[Job]:
        """Return the jobs that have not ended, the oldest first."""

    def add(self, job: Job, pictures: Sequence[bytes]) -> None:
        """Keep a new job and the pictures that go into it."""

    def update(self, job: Job) -> None:
        """Keep what changed of a job."""

    def get(self, job: str) -> Job | None:
        """Return a job, None where there is none of this id."""

    def by_key(self, client: str, key: str) -> Job | None:
        """Return the job of a client's idempotency key, None where it was not used."""

    def inputs(self, job: Job) -> list[bytes]:
        """Return the pictures that go into a job."""

    def write_pictures(self, job: Job, files: Sequence[bytes], suffix: str) -> list[str]:
        """Write a job's pictures, whole or not at all, and return their names; called in any thread."""

    def done_with_inputs(self, job: Job) -> None:
        """Take note that a job has ended: the pictures that went into it may go."""

    def remove(self, job: Job) -> None:
        """Forget a job that has ended, and its pictures."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    Attributes:
        number: counts the events of the log that it is in.
        kind: the state that a job came into, ``progress`` or ``retried``.
        data: what there is to say, as JSON.
        preview: a JPEG; None where none was made.
    """

    number: int
    kind: str
    data: dict[str, Any]
    preview: bytes | None = None


class Events:
    """The last events of something, and whoever waits for the next one. A slow reader holds nobody up, nor memory."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=_EVENTS)
        self._next = 1
        self._closed = False
        self._waiting: set[asyncio.Future[None]] = set()

    def add(self, kind: str, data: dict[str, Any], preview: bytes | None = None) -> None:
        """Add an event, and wake who waits."""
        self._kept.append(Event(self._next, kind, data, preview))
        self._next += 1
        self._wake()

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return not self._kept

    @property
    def last(self) -> int:
        """The number of the last one, 0 for none."""
        return self._next - 1

    def close(self) -> None:
        """Say that no event follows."""
        self._closed = True
        shown = [index for index, event in enumerate(self._kept) if event.preview is not None]
        for index in shown[:-_PREVIEWS]:
            self._kept[index] = replace(self._kept[index], preview=None)
        self._wake()

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def after(self, number: int = 0) -> AsyncIterator[Event]:
        """Yield the events that follow the one of a number, those that are there and those to come, until closed."""
        if number >= self._next:
            number = 0  # of a log before this one: the server was started anew
        while True:
            for event in [each for each in self._kept if each.number > number]:
                number = event.number
                yield event
            if self._kept and self._kept[-1].number > number:
                continue  # some came while the reader was busy
            if self._closed:
                return
            future = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)
