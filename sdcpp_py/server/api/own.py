"""``/api``: jobs with their events, plans and reports; models, devices, health and metrics."""

# Not postponed: FastAPI reads the annotations, which name what is made here.
import asyncio
import contextlib
import io
import mimetypes
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, Union

import PIL.Image
from fastapi import APIRouter, File, Query, UploadFile
from fastapi.requests import Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from pydantic import Field
from sse_starlette import EventSourceResponse

from ..._version import __version__
from ...parameters import read_parameters
from ..front import Front, sse
from ..intake import FORMATS, check_picture
from ..jobs import Event, Job, UnknownJobError
from ..model_list import MODES, formats_of
from ..schemas import (
    ErrorAnswer,
    JobAnswer,
    JobList,
    ModelAnswer,
    ParametersAnswer,
    Report,
    WorkerAnswer,
    errors,
    job_models,
    names_from,
)

_Seconds = Annotated[float | None, Query(gt=0, le=86400, description="after which the stream ends")]
_Wait = Annotated[float, Query(ge=0, le=3600, description="seconds to wait for its end")]
_LARGE = 4 << 20  # bytes of files that are sent in pieces
_SMALL = 1 << 16  # bytes that are read sooner than a thread begins
_SSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}, "description": "events"}}
_PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/*": {}}, "description": "the file"}}


def router(front: Front) -> APIRouter:
    """Return the routes."""
    scheduler = front.scheduler
    api = APIRouter(prefix="/api", responses=errors(400, 404, form=ErrorAnswer))
    models = job_models(names_from(scheduler.facts))
    one_of = Annotated[Union[tuple(models)], Field(discriminator="mode")]  # type: ignore[valid-type]  # noqa: UP007

    forms = {}
    for (name, mode), model in zip(MODES.items(), models, strict=True):
        options = model.model_fields["options"].annotation.model_json_schema()  # type: ignore[union-attr]
        forms[name] = {"title": mode.title, "options": options, "formats": formats_of(name)}

    def answer(job: Job) -> dict[str, Any]:
        return {**job.to_dict(), "position": scheduler.position(job)}

    async def ended(job: Job, seconds: float) -> None:
        """Return when a job has ended, or the time is over."""
        if seconds:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(scheduler.finished(job), seconds)

    def model_answer(name: str) -> dict[str, Any]:
        if name not in scheduler.models:
            raise UnknownJobError(f"there is no model {name[:64]!r}; there are {', '.join(scheduler.models)}")
        served = scheduler.models[name]
        return {
            "name": name,
            "kind": served.kind,
            "default": name == scheduler.default_model,
            "loaded": scheduler.loaded()[name],
            "defaults": served.drawn_with,
            "loras": served.lora_folder is not None,
            "modes": scheduler.modes(name),
        }

    # --- jobs ---------------------------------------------------------------------------------------------------------

    @api.post("/jobs", status_code=202, response_model=JobAnswer, tags=["jobs"],
              responses=errors(409, 429, 503, 507, form=ErrorAnswer))  # fmt: skip
    async def submit(
        http: Request,
        job: one_of,  # type: ignore[valid-type]
        wait: _Wait = 0.0,
    ) -> Any:
        """Take a job. The header Idempotency-Key makes a second request with the same key the same job."""
        options = job.options.model_dump(exclude_unset=True)  # type: ignore[attr-defined]
        fields = job.model_dump(include={"priority", "seconds", "output"})  # type: ignore[attr-defined]
        taken = await front.submit(http, job.mode, job.model, options, **fields)  # type: ignore[attr-defined]
        async with front.watching(http, taken):
            await ended(taken, wait)
        return answer(taken)

    @api.get("/jobs", response_model=JobList, tags=["jobs"])
    async def jobs(
        state: Literal["", "queued", "loading", "running", "done", "failed", "cancelled"] = "",
        client: str = "",
        search: Annotated[str, Query(max_length=1000, description="words of the prompt")] = "",
        before: Annotated[float | None, Query(description="created before this time")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Any:
        """List jobs, the newest first."""
        found = front.store.listed(state=state, client=client, search=search, before=before, limit=limit)
        waiting = scheduler.positions()
        current = [scheduler.current(each) for each in found]
        return {"jobs": [{**each.to_dict(), "position": waiting.get(each.id, 0)} for each in current]}

    @api.get("/jobs/{job}", response_model=JobAnswer, tags=["jobs"], responses=errors(503, form=ErrorAnswer))
    async def job(job: str, wait: _Wait = 0.0) -> Any:
        """Return a job, at once or when it has ended."""
        found = scheduler.find(job)
        await ended(found, wait)
        return answer(found)

    @api.delete("/jobs/{job}", status_code=204, tags=["jobs"], responses=errors(409, form=ErrorAnswer))
    async def remove(job: str) -> Response:
        """Forget a job that has ended, and its pictures."""
        scheduler.remove(scheduler.find(job))
        return Response(status_code=204)

    @api.post("/jobs/{job}/cancel", response_model=JobAnswer, tags=["jobs"])
    async def cancel(job: str) -> Any:
        """Cancel a job, whether it waits or is drawn; of one that has ended nothing changes."""
        found = scheduler.find(job)
        scheduler.cancel(found)
        return answer(found)

    @api.get("/jobs/{job}/events", response_class=EventSourceResponse, tags=["jobs"], responses=_SSE)
    async def events(http: Request, job: str, after: int = 0, seconds: _Seconds = None) -> Response:
        """Stream what happens to a job: queued, loading, running, progress with previews, retried, and how it ends.

        With the header Last-Event-ID, or *after*, those that follow.
        """
        found = scheduler.find(job)
        return _stream(front.events(found, _heard(http, after)), seconds)

    @api.get("/events", response_class=EventSourceResponse, tags=["jobs"], responses=_SSE)
    async def all_events(http: Request, after: int = 0, seconds: _Seconds = None) -> Response:
        """Stream what happens to all jobs, progress left out; after -1 what happens from now on."""
        after = scheduler.events.last if after < 0 else after
        return _stream(scheduler.events.after(_heard(http, after)), seconds)

    @api.get("/jobs/{job}/pictures/{index}", response_class=FileResponse, tags=["jobs"],
             responses={**_PICTURE, 304: {"description": "the client has it"}})  # fmt: skip
    async def picture(http: Request, job: str, index: int) -> Response:
        """Return a picture of a job, or its video."""
        file = front.store.picture(scheduler.find(job), index)
        if file is None:
            raise UnknownJobError("there is no such picture, or it was removed")
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        # Of one name there is never another picture.
        kept = {"cache-control": "private, max-age=31536000, immutable", "etag": f'"{file.name}"'}
        if kept["etag"] in http.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=kept)
        kept["content-disposition"] = f'inline; filename="{file.name}"'
        try:
            stat = file.stat()
            if stat.st_size > _LARGE or "range" in http.headers:  # in pieces
                return FileResponse(file, media_type=kind, headers=kept, stat_result=stat)
            data = file.read_bytes() if stat.st_size <= _SMALL else await asyncio.to_thread(file.read_bytes)
        except OSError:
            raise UnknownJobError("the picture was removed meanwhile") from None
        return Response(data, media_type=kind, headers=kept)

    @api.get("/jobs/{job}/inputs/{index}", response_class=Response, tags=["jobs"], responses=_PICTURE)
    async def input_picture(job: str, index: int) -> Response:
        """Return a picture that went into a job: options have the numbers of their pictures."""
        file = front.store.input(scheduler.find(job), index)
        try:
            data = b"" if file is None else await asyncio.to_thread(file.read_bytes)
            with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
                kind = image.get_format_mimetype() or "application/octet-stream"
        except OSError:
            raise UnknownJobError("there is no such picture, or it was removed") from None
        return Response(data, media_type=kind, headers={"cache-control": "private, max-age=31536000, immutable"})

    @api.get("/jobs/{job}/preview", response_class=Response, tags=["jobs"], responses=_PICTURE)
    async def preview(job: str) -> Response:
        """Return the last preview of a job that is drawn with one."""
        data = scheduler.find(job).preview
        if data is None:
            raise UnknownJobError("there is no preview; ask for one with the option preview")
        return Response(data, media_type="image/jpeg", headers={"cache-control": "no-store"})

    @api.get("/jobs/{job}/report", response_model=Report, tags=["jobs"])
    async def report(job: str) -> Any:
        """Return where a job's weights lay, what was copied, and what was hidden behind compute."""
        found = scheduler.find(job)
        if found.result is None:
            raise UnknownJobError("there is no report before the job is done")
        return found.result

    # --- what there is ------------------------------------------------------------------------------------------------

    @api.get("/models", response_model=list[ModelAnswer], tags=["models"])
    async def list_models() -> Any:
        """List the models and upscalers."""
        return [model_answer(name) for name in scheduler.models]

    @api.post("/models/{name}/unload", response_model=ModelAnswer, tags=["models"])
    async def unload(name: str) -> Any:
        """Have every worker give a model back, after the job that it is at."""
        model_answer(name)
        await scheduler.unload(name)
        return model_answer(name)

    @api.get("/models/{name}/loras", response_model=list[str], tags=["models"])
    async def loras(name: str) -> Any:
        """List the names of the LoRAs that a model is drawn with."""
        model_answer(name)
        return await asyncio.to_thread(scheduler.models[name].lora_names)

    @api.get("/modes", tags=["models"])
    async def modes() -> dict[str, Any]:
        """Return the JSON schema of each mode's options, for forms, and the formats that it writes.

        ``x-panel`` says which options belong together, ``x-default`` what is taken where none is given.
        """
        return forms

    @api.get("/devices", tags=["server"])
    async def devices() -> list[dict[str, Any]]:
        """List the devices that can compute or hold weights, as they were when the first worker started."""
        return list(scheduler.facts["devices"])

    @api.get("/workers", response_model=list[WorkerAnswer], tags=["server"])
    async def workers() -> Any:
        """List the workers."""
        return [
            {
                "name": slot.worker.name,
                "ready": slot.is_ready,
                "job": slot.job and slot.job.id,
                "loaded": dict(slot.worker.loaded),
                "resident": slot.worker.resident,
                "restarts": slot.restarts,
            }
            for slot in scheduler.workers
        ]

    @api.post("/parameters", response_model=ParametersAnswer, tags=["pictures"])
    async def parameters(picture: Annotated[UploadFile, File(description="a picture of ours or of others")]) -> Any:
        """Return the options that a picture was drawn with, ready to be asked for again."""
        data = await picture.read()
        check_picture("picture", data, front.intake.bounds)
        found = await asyncio.to_thread(read_parameters, data)
        declared = MODES[found.mode].declared if found.mode in MODES else {}
        options = {name: declared[name].kind.plain(each) for name, each in found.items() if name in declared}
        return {"mode": found.mode, "options": options, "unmapped": found.unmapped}

    @api.get("/health", tags=["server"])
    async def health() -> dict[str, str]:
        """Say that the server lives."""
        return {"status": "ok", "version": __version__}

    @api.get("/ready", tags=["server"], responses=errors(503, form=ErrorAnswer))
    async def ready() -> Response:
        """Say whether jobs are taken and a worker is there for them."""
        status = {"ready": scheduler.is_ready, "waiting": scheduler.waiting, "running": len(scheduler.running)}
        return JSONResponse(status, 200 if scheduler.is_ready else 503)

    @api.get("/metrics", response_class=PlainTextResponse, tags=["server"])
    async def metrics() -> Response:
        """Return numbers for Prometheus."""
        return PlainTextResponse(front.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return api


def _heard(http: Request, after: int) -> int:
    """Return the number of the last event that a client has, by its header Last-Event-ID, else *after*."""
    last = http.headers.get("last-event-id", "")
    return int(last) if last.isdecimal() and len(last) < 20 else after


def _stream(events: AsyncIterator[Event], seconds: float | None) -> EventSourceResponse:
    """Return events as a stream, which ends after so many seconds."""

    async def told() -> AsyncIterator[dict[str, Any]]:
        end = float("inf") if seconds is None else time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                event = await asyncio.wait_for(anext(events), left if seconds else None)
            except (StopAsyncIteration, asyncio.TimeoutError):
                return
            yield sse(event)

    return EventSourceResponse(told(), ping=15, headers={"x-accel-buffering": "no"})
