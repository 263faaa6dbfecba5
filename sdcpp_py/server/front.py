"""What every API has at hand, and what they do alike: take a job, wait for it, say what went wrong."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request as HttpRequest

from ..errors import ArgumentError, ModelError, SdcppError
from .folders import Folders
from .intake import Intake
from .jobs import (
    ConflictError,
    DeadlineError,
    DrainingError,
    Event,
    Job,
    QueueFullError,
    RefusedError,
    StoreError,
    UnknownJobError,
)
from .metrics import Metrics
from .scheduler import Scheduler
from .security import Security
from .store import Store

log = logging.getLogger("sdcpp_py.server")

_STATUS: dict[type[Exception], int] = {
    QueueFullError: 429,
    DrainingError: 503,
    StoreError: 507,
    UnknownJobError: 404,
    ConflictError: 409,
    DeadlineError: 504,
    RefusedError: 400,
    ArgumentError: 400,
    ModelError: 400,
}
_STATUS_OF_JOBS = {
    "ArgumentError": 400,
    "ModelError": 400,
    "RefusedError": 400,
    "CancelledError": 409,
    "DeadlineError": 504,
    "DeviceMemoryError": 507,
    "StoreError": 507,
}
_DISCONNECT_SECONDS = 0.5
_LONGEST_KEY = 256


class JobFailedError(SdcppError):
    """A job that a client waited for ended without pictures.

    Args:
        job: it.
    """

    def __init__(self, job: Job) -> None:
        error = job.error or {"type": "SdcppError", "message": "it ended without pictures"}
        super().__init__(str(error["message"]), error.get("engine_log", ()))
        self.job = job
        self.kind = str(error["type"])


@dataclass(frozen=True)
class Problem:
    """What an API says of an error, in its own form.

    Attributes:
        status: of HTTP.
        kind: name of the error.
        message: one line.
        engine_log: the engine's last lines.
        headers: to answer with.
    """

    status: int
    kind: str
    message: str
    engine_log: tuple[str, ...] = ()
    headers: Mapping[str, str] | None = None


def _problem(error: Exception) -> Problem:
    """Return an error as it is."""
    if isinstance(error, JobFailedError):
        return Problem(_STATUS_OF_JOBS.get(error.kind, 500), error.kind, str(error), error.engine_log)
    status = next((each for kind, each in _STATUS.items() if isinstance(error, kind)), 500)
    headers = None
    if isinstance(error, QueueFullError):
        headers = {"retry-after": str(round(error.retry_after))}
    elif isinstance(error, DrainingError):
        headers = {"retry-after": "10"}
    log = getattr(error, "engine_log", ())
    return Problem(status, type(error).__name__, " ".join(str(error).split()), tuple(log), headers)


@dataclass(frozen=True)
class Front:
    """What every API has at hand.

    Attributes:
        scheduler: of the jobs.
        store: where they are kept.
        intake: makes requests of what clients send.
        security: who may speak to the server.
        metrics: numbers for Prometheus.
        folders: of this machine, which clients are not told of.
        cancel_on_disconnect: whether a job is cancelled when the client that waits for it goes away.
    """

    scheduler: Scheduler
    store: Store
    intake: Intake
    security: Security
    metrics: Metrics
    folders: Folders
    cancel_on_disconnect: bool = False

    async def submit(
        self, http: HttpRequest, mode: str, model: str | None, options: Mapping[str, Any], **more: Any
    ) -> Job:
        """Take a job.

        Args:
            http: the request that it came by.
            mode: name of the mode.
            model: name of the model; None for the default one.
            options: as JSON has them.
            more: other arguments of Intake.request.

        Raises:
            SdcppError: it is not taken.
        """
        more.setdefault("client", http.scope["state"]["client"])
        key = http.headers.get("idempotency-key", "")
        if len(key) > _LONGEST_KEY:  # cut, two could be the same
            raise ArgumentError(f"Idempotency-Key must have at most {_LONGEST_KEY} characters, not {len(key)}")
        more.setdefault("key", key)
        name = model or self.default_model(mode)
        make = functools.partial(self.intake.request, mode, name, options, **more)
        # A thread costs more than most requests, but not those whose pictures or files are looked at.
        request = await asyncio.to_thread(make) if self.intake.reads(mode, name, options) else make()
        return self.scheduler.submit(request)

    def problem(self, error: Exception) -> Problem:
        """Return what to say of an error; the log has the rest of it."""
        whole = _problem(error)
        said = replace(whole, message=self.folders.hide(whole.message), engine_log=self.folders.hide(whole.engine_log))
        if said != whole:
            log.warning("%s: %s", whole.kind, "; ".join((whole.message, *whole.engine_log)))
        return said

    def default_model(self, mode: str) -> str:
        """Return the model, or for ``upscale`` the upscaler, that is taken where a request names none.

        Raises:
            RefusedError: there is no upscaler.
        """
        if mode != "upscale":
            return self.scheduler.default_model
        found = next((name for name, each in self.scheduler.models.items() if each.kind == "upscaler"), None)
        if found is None:
            raise RefusedError("there is no upscaler here; start with --upscaler-dir, or name one in models.toml")
        return found

    async def drawn(self, http: HttpRequest, job: Job) -> Job:
        """Return a job when it is done; where that is wanted it is cancelled when the client goes away before.

        Raises:
            JobFailedError: it ended otherwise.
            DrainingError: the server ends before.
        """
        async with self.watching(http, job):
            await self.scheduler.finished(job)
        if job.state != "done":
            raise JobFailedError(job)
        return job

    @contextlib.asynccontextmanager
    async def watching(self, http: HttpRequest, job: Job) -> AsyncIterator[None]:
        """Cancel a job meanwhile when the client goes away, where that is wanted."""
        asked = http.headers.get("x-sdcpp-cancel-on-disconnect", "").lower() in ("1", "true", "yes")
        if not (asked or self.cancel_on_disconnect):
            yield
            return

        async def watch() -> None:
            while not await http.is_disconnected():
                await asyncio.sleep(_DISCONNECT_SECONDS)
            self.scheduler.cancel(job)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()

    def pictures(self, job: Job) -> list[bytes]:
        """Return the files of a job's pictures.

        Raises:
            UnknownJobError: they are removed already.
        """
        files = [self.store.picture(job, index) for index in range(len(job.files))]
        with contextlib.suppress(OSError):  # others make room meanwhile
            if files and None not in files:
                return [file.read_bytes() for file in files if file is not None]
        raise UnknownJobError("the pictures of this job are removed; raise --store-limit")

    def pictures_as_text(self, job: Job) -> list[str]:
        """Return the same as base64."""
        return [base64.b64encode(each).decode() for each in self.pictures(job)]

    async def events(self, job: Job, after: int = 0) -> AsyncIterator[Event]:
        """Yield what happens to a job, until it has ended."""
        async for event in job.events.after(after):
            yield event


async def json_object(http: HttpRequest) -> dict[str, Any]:
    """Return a request's body.

    Raises:
        RefusedError: it is no JSON object.
    """
    try:
        body = await http.json()
    except (ValueError, RecursionError):
        raise RefusedError("the body is no JSON, or is nested too deeply") from None
    if not isinstance(body, dict):
        raise RefusedError("the body must be a JSON object")
    return body


def sse(event: Event) -> dict[str, Any]:
    """Return an event as a server-sent one; a preview is a data URL in it."""
    data = dict(event.data)
    if event.preview is not None:
        data["preview"] = f"data:image/jpeg;base64,{base64.b64encode(event.preview).decode()}"
    return {"event": event.kind, "id": str(event.number), "data": json.dumps(data)}
