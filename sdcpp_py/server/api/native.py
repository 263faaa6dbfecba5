"""``/sdcpp/v1``: the API of stable-diffusion.cpp's own server, after its ``examples/server/api.md``, with progress.

Fields are the engine's, nested as there; which of our options each one is the declarations say.
"""

# Not postponed: FastAPI reads the annotations.
import asyncio
import mimetypes
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response

from ...modes import IMG2VID, INPAINT, TXT2VID, Mode
from ...options import MAX_BATCH, MAX_SIDE
from ..front import Front, Problem, json_object
from ..jobs import ConflictError, Job
from ..model_list import PICTURE_FORMATS, VIDEO_FORMATS, ServedModel
from ..schemas import DRAWING_ERRORS, errors
from .native_fields import from_fields, mode_of_images, mode_of_video

_STATUS = {
    "queued": "queued",
    "loading": "generating",
    "running": "generating",
    "done": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
_KINDS = {"img_gen": INPAINT, "vid_gen": IMG2VID}
"""What each kind of job takes: the fields of the mode that has most of them."""
_FEATURES = {
    "img_gen": ("init_image", "mask_image", "control_image", "ref_images", "lora", "vae_tiling", "hires", "cache",
                "cancel_queued", "cancel_generating"),
    "vid_gen": ("init_image", "end_image", "control_frames", "high_noise_sample_params", "lora", "vae_tiling", "cache",
                "cancel_queued", "cancel_generating"),
}  # fmt: skip
_CODES = {"CancelledError": "cancelled", "DeadlineError": "deadline"}
_BODY = {"requestBody": {"content": {"application/json": {"schema": {"type": "object", "properties": {
    "prompt": {"type": "string"}}, "additionalProperties": True}}}, "required": True}}  # fmt: skip


def error_form(said: Problem) -> dict[str, Any]:
    """Return an error as sd-server has it."""
    return {"error": said.kind, "message": said.message}


def _defaults(mode: Mode, facts: Mapping[str, Any], served: ServedModel, kind: str) -> dict[str, Any]:
    """Return the defaults of a mode on a model, in the engine's fields, nested."""
    own = {name: value for name, value in served.drawn_with.items() if name in mode.declared}
    known = {**facts["defaults"][mode.name], **own}
    made: dict[str, Any] = {"prompt": "", "negative_prompt": ""}
    for name, value in known.items():
        if not mode.declared[name].opt.field or not isinstance(value, (bool, int, float, str)):
            continue
        *above, leaf = mode.declared[name].opt.field.split(".")
        place = made
        for each in above:
            place = place.setdefault(each, {})
        place[leaf] = value
    return {**made, "output_format": "webm" if kind == "vid_gen" else "png", "output_compression": 100}


def router(front: Front) -> APIRouter:
    """Return the routes."""
    scheduler = front.scheduler
    facts = scheduler.facts
    api = APIRouter(prefix="/sdcpp/v1", tags=["sd-server"], responses=errors(*DRAWING_ERRORS))

    def answer(job: Job, result: Any = None) -> dict[str, Any]:
        error = job.error and {"code": _CODES.get(job.error["type"], "generation_failed"), "type": job.error["type"],
                               "message": job.error["message"]}  # fmt: skip
        return {
            "id": job.id,
            "kind": "vid_gen" if job.request["mode"] in (TXT2VID.name, IMG2VID.name) else "img_gen",
            "status": _STATUS[job.state],
            "created": int(job.created),
            "started": job.started and int(job.started),
            "completed": job.ended and int(job.ended),
            "queue_position": scheduler.position(job),
            "progress": job.progress,
            "warnings": job.warnings,
            "result": result,
            "error": error,
        }

    async def take(http: Request, mode: Mode, body: Mapping[str, Any], kind: str) -> Response:
        asked = from_fields(mode, body, facts["defaults"][_KINDS[kind].name])
        if kind == "vid_gen":
            asked.output.setdefault("format", "webm")
            asked.output.pop("compression", None)
        more = {"source": "sd-server", "output": asked.output, "notes": asked.notes}
        job = await front.submit(http, mode.name, None, asked.options, **more)
        told = {"id": job.id, "kind": kind, "status": _STATUS[job.state], "created": int(job.created)}
        return JSONResponse({**told, "poll_url": f"/sdcpp/v1/jobs/{job.id}"}, 202)

    @api.get("/capabilities")
    async def capabilities() -> dict[str, Any]:
        """Say what there is."""
        served = scheduler.models[scheduler.default_model]
        loras = await asyncio.to_thread(served.lora_names)
        upscalers = [name for name, each in scheduler.models.items() if each.kind == "upscaler"]
        names = facts["names"]
        of: dict[str, dict[str, Any]] = {
            "defaults": {kind: _defaults(mode, facts, served, kind) for kind, mode in _KINDS.items()},
            "output_formats": {"img_gen": list(PICTURE_FORMATS), "vid_gen": list(VIDEO_FORMATS)},
            "features": {kind: dict.fromkeys(each, True) for kind, each in _FEATURES.items()},
        }
        return {
            "model": {"name": served.name, "stem": served.name, "path": served.name},
            "current_mode": "img_gen",
            "supported_modes": list(_KINDS),
            **{name: each["img_gen"] for name, each in of.items()},
            **{f"{name}_by_mode": each for name, each in of.items()},
            "samplers": names["sample_method"],
            "schedulers": names["scheduler"],
            "loras": [{"name": each.rpartition("/")[2], "path": each} for each in loras],
            "upscalers": [{"name": each} for each in (*(n for n in names["upscaler"] if n != "Model"), *upscalers)],
            "limits": {"min_width": 8, "max_width": MAX_SIDE, "min_height": 8, "max_height": MAX_SIDE,
                       "max_batch_count": MAX_BATCH, "max_queue_size": scheduler.limits.queue},
        }  # fmt: skip

    @api.post("/img_gen", status_code=202, openapi_extra=_BODY)
    async def img_gen(http: Request) -> Response:
        """Take a job that draws pictures."""
        body = await json_object(http)
        return await take(http, mode_of_images(body), body, "img_gen")

    @api.post("/vid_gen", status_code=202, openapi_extra=_BODY)
    async def vid_gen(http: Request) -> Response:
        """Take a job that draws a video."""
        body = await json_object(http)
        return await take(http, mode_of_video(body), body, "vid_gen")

    @api.get("/jobs/{job}", responses=errors(410))
    async def job(job: str) -> Response:
        """Return a job, with its pictures when it is done; 410 when they are removed."""
        found = scheduler.find(job)
        if found.state == "done" and not found.files:
            return JSONResponse({"error": "gone", "message": "the pictures of this job are removed"}, 410)
        result = await asyncio.to_thread(_result, front, found) if found.state == "done" else None
        return JSONResponse(answer(found, result))

    @api.post("/jobs/{job}/cancel")
    async def cancel(job: str) -> dict[str, Any]:
        """Cancel a job."""
        found = scheduler.find(job)
        if not scheduler.cancel(found):
            raise ConflictError("the job has ended")
        return answer(found)

    return api


def _result(front: Front, job: Job) -> dict[str, Any]:
    """Return the pictures of a job that is done, or its video."""
    files = front.pictures_as_text(job)
    kind = job.files[0].rpartition(".")[2]
    told = job.result or {}
    if "frames" not in told:
        images = [{"index": index, "b64_json": each} for index, each in enumerate(files)]
        return {"output_format": kind, "images": images, "seeds": told.get("seeds", [])}
    mime = mimetypes.guess_type(job.files[0])[0] or "application/octet-stream"
    return {"output_format": kind, "mime_type": mime, "fps": told["fps"], "frame_count": told["frames"],
            "b64_json": files[0]}  # fmt: skip
