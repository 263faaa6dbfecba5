"""``/v1``: what clients of OpenAI's Images API call, after its reference: https://platform.openai.com/docs/api-reference/images.

Options of ours go at the top level of the body, or in the prompt as ``<sd_cpp_extra_args>``, as sd-server takes them.
"""

# Not postponed: FastAPI reads the annotations.
import asyncio
import base64
import io
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import create_model
from sse_starlette import EventSourceResponse

from ...errors import ArgumentError
from ...modes import EDIT, IMG2IMG, INPAINT, TXT2IMG
from ...options.checks import check_text, show
from ..front import Front, JobFailedError, Problem
from ..intake import FORMATS, check_picture, decoded
from ..jobs import Job, UnknownModelError
from ..model_list import MODES
from ..schemas import DRAWING_ERRORS, errors, fields_of, names_from
from .native_fields import from_fields, take_extra
from .openai_fields import Images, body_schema, own_options, sent_by

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_PREFIX = re.compile(r"(/[\w.~-]+)+/?")
_THEIRS = re.compile(r"(dall-e|gpt-image|chatgpt-image)[\w.-]*")
_WITHOUT_EFFECT = ("style", "background", "moderation", "input_fidelity", "complexity", "frame_count",
                   "frame_duration_ms", "svg")  # fmt: skip
_SAID_OF_NOTHING = (None, "auto", "opaque")
_ANSWERS: dict[int | str, dict[str, Any]] = {200: {
    "description": "the pictures; with stream, events", "content": {"application/json": {}, "text/event-stream": {}},
}}  # fmt: skip
_FIELDS = {*Images.model_fields, *TXT2IMG.declared, *INPAINT.declared}
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error",
          429: "rate_limit_error"}  # fmt: skip
_CODES = {"QueueFullError": "rate_limit_exceeded", "UnknownModelError": "model_not_found"}


def error_form(said: Problem) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kind = _KINDS.get(said.status, "server_error" if said.status >= 500 else "invalid_request_error")
    code = _CODES.get(said.kind, said.kind)
    # Messages of what is wrong with a field begin with its name.
    first = re.match(r"[a-z_]+", said.message)
    param = first[0] if first is not None and said.status == 400 and first[0] in _FIELDS else None
    return {"error": {"message": said.message, "type": kind, "param": param, "code": code}}


@dataclass
class Call:
    """A call, in our words.

    Attributes:
        mode: name of the mode.
        options: of it.
        given: the fields that the calls share.
        output: format and compression.
        notes: of what has no effect.
        otherwise: the mode where the model cannot do *mode*.
    """

    mode: str
    options: dict[str, Any]
    given: dict[str, Any]
    output: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    otherwise: str = ""


def _take(call: Call, defaults: Mapping[str, Any]) -> None:
    """Bring the shared fields of a call into its options."""
    given, options = call.given, call.options
    extra = None
    if isinstance(options.get("prompt"), str):  # what else it may be is refused where all options are checked
        options["prompt"], extra = take_extra(options["prompt"])
    if extra:
        asked = from_fields(MODES[call.mode], extra, defaults)
        call.options = options = {**options, **asked.options}
        call.output |= asked.output
        call.notes += asked.notes
    if given.get("n") is not None:
        options["batch_count"] = given["n"]
    size = given.get("size")
    if size not in (None, "", "auto"):
        match = _SIZE.fullmatch(str(size))
        if match is None:
            raise ArgumentError(f"size must be WIDTHxHEIGHT or auto, not {show(size)}")
        options["width"], options["height"] = int(match[1]), int(match[2])
    if "image" in options and "resize_mode" in MODES[call.mode].declared:
        options.setdefault("resize_mode", "crop")  # clients say a size without looking at their picture's
    for name, key in (("output_format", "format"), ("output_compression", "compression")):
        if given.get(name) is not None:
            call.output[key] = given[name]
    for name in _WITHOUT_EFFECT:
        value = options.pop(name, None)
        if value not in _SAID_OF_NOTHING:
            call.notes.append(f"{name} {show(value)} has no effect")
    if given.get("stream"):
        steps = options.get("steps") or 20
        count = given.get("partial_images") or 0
        if count and "preview" in MODES[call.mode].declared:
            options.setdefault("preview", "proj")
            options.setdefault("preview_interval", max(1, int(steps) // (count + 1)))


def _mask(data: bytes) -> bytes:
    """Return a mask whose white parts are drawn anew, of one of OpenAI's, whose transparent parts are."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return data
        alpha = image.convert("RGBA").getchannel("A")
    buffer = io.BytesIO()
    alpha.point([255 - level for level in range(256)]).save(buffer, "PNG")
    return buffer.getvalue()


def router(front: Front) -> APIRouter:
    """Return the routes."""
    scheduler = front.scheduler
    api = APIRouter(prefix="/v1", tags=["OpenAI"], responses=errors(*DRAWING_ERRORS))
    fields = fields_of(TXT2IMG.declared, names_from(scheduler.facts))
    generation = create_model("ImageGeneration", __base__=Images, **fields)

    drawing = [name for name, each in scheduler.models.items() if each.kind == "model"]  # upscalers do nothing here

    def unknown(name: str) -> UnknownModelError:
        return UnknownModelError(f"model {name[:64]!r} is not served; there are {', '.join(drawing)}")

    def model_of(call: Call) -> str | None:
        name = call.given.get("model")
        if not name or name in drawing:
            return name or None
        if _THEIRS.fullmatch(name):
            call.notes.append(f"model {name} is OpenAI's own; {scheduler.default_model} draws")
            return None
        raise unknown(name)

    async def answer(http: Request, call: Call, kind: str) -> Response:
        model = model_of(call)
        _take(call, scheduler.facts["defaults"].get("inpaint", {}))
        quality = call.given.get("quality")
        if quality not in (None, "auto", "standard", "medium"):
            call.notes.append(f"quality {show(quality)} has no effect; say steps")
        more: dict[str, Any] = {"source": "openai", "output": call.output, "notes": call.notes}
        if user := call.given.get("safety_identifier") or call.given.get("user"):
            more["client"] = f"{http.scope['state']['client']}/{check_text('user', user)[:64]}"
        job = await front.submit(http, call.mode, model, call.options, otherwise=call.otherwise, **more)
        if call.given.get("stream"):
            return EventSourceResponse(_told(front, http, job, call, kind), ping=15)
        await front.drawn(http, job)
        as_url = call.given.get("response_format") == "url" or (
            call.given.get("response_format") is None and str(call.given.get("model")).startswith("dall-e")
        )
        return JSONResponse(await asyncio.to_thread(_result, front, job, call, _base(http) if as_url else ""))

    @api.post("/images/generations", responses=_ANSWERS)
    async def generations(http: Request, body: generation) -> Response:  # type: ignore[valid-type]
        """Draw pictures from a text."""
        given = body.model_dump(exclude_unset=True)  # type: ignore[attr-defined]
        return await answer(http, Call(TXT2IMG.name, own_options(given), given), "image_generation")

    @api.post("/images/edits", responses=_ANSWERS, openapi_extra=body_schema("image", "image[]", "mask", "prompt"))
    async def edits(http: Request) -> Response:
        """Edit pictures: with a mask, with a model that reads references, or else by drawing the picture anew."""
        sent = await sent_by(http)
        images, masks, own = sent.images, sent.masks, own_options(sent.given)
        if not images:
            raise ArgumentError("image is missing: send it as a file, or as images with a data URL each in JSON")
        if not masks:
            call = Call(EDIT.name, {**own, "images": images}, sent.given, otherwise=IMG2IMG.name)
        else:
            if len(images) != 1 or len(masks) != 1:
                raise ArgumentError(f"a mask goes with one image, and {len(masks)} with {len(images)} were sent")
            data = decoded("mask", masks[0])
            check_picture("mask", data, front.intake.bounds)
            mask = await asyncio.to_thread(_checked_mask, data)
            call = Call(INPAINT.name, {**own, "image": images[0], "mask": mask}, sent.given)
        return await answer(http, call, "image_edit")

    @api.post("/images/variations", responses=_ANSWERS, openapi_extra=body_schema("image"))
    async def variations(http: Request) -> Response:
        """Draw a picture anew, without a text."""
        sent = await sent_by(http)
        if len(sent.images) != 1 or sent.masks:
            raise ArgumentError(f"a variation is of one image without a mask, and {len(sent.images)} were sent")
        options = {"prompt": "", **own_options(sent.given), "image": sent.images[0]}
        return await answer(http, Call(IMG2IMG.name, options, sent.given), "image_edit")

    @api.get("/models")
    async def models() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [model_answer(name) for name in drawing]}

    @api.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """Return a model."""
        if name not in drawing:
            raise unknown(name)
        return model_answer(name)

    def model_answer(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "sdcpp-py"}

    return api


def _checked_mask(data: bytes) -> bytes:
    """Return a mask as ours are, of bytes that may be no picture."""
    try:
        return _mask(data)
    except Exception:  # whatever a decoder raises of damaged files
        raise ArgumentError("mask is damaged; send another one") from None


def _described(job: Job, call: Call) -> dict[str, Any]:
    """Return what every answer says of its pictures."""
    size = (job.result or {}).get("size")
    told = f"{size[0]}x{size[1]}" if size else str(call.given.get("size") or "auto")
    asked = call.given.get("quality")
    return {
        "background": "opaque",
        "output_format": call.output.get("format") or "png",
        "quality": asked if asked in ("low", "medium", "high") else "auto",
        "size": told,
    }


def _usage(count: int) -> dict[str, Any]:
    """Return OpenAI's count of tokens, of which there are none here."""
    details = {"image_tokens": 0, "text_tokens": 0}
    return {"input_tokens": 0, "input_tokens_details": details, "output_tokens": count, "total_tokens": count,
            "output_tokens_details": {"image_tokens": count, "text_tokens": 0}}  # fmt: skip


def _base(http: Request) -> str:
    """Return the address that a client called the server by, with the path that a proxy has put it under."""
    prefix = http.headers.get("x-forwarded-prefix", "")
    return str(http.base_url).rstrip("/") + (prefix.rstrip("/") if _PREFIX.fullmatch(prefix) else "")


def _result(front: Front, job: Job, call: Call, base: str) -> dict[str, Any]:
    """Return the answer of a job that is done; with addresses where there is a base for them."""
    seeds: Sequence[int] = (job.result or {}).get("seeds", [])
    if base:
        paths = [f"/api/jobs/{job.id}/pictures/{index}" for index in range(len(job.files))]
        data: list[dict[str, Any]] = [{"url": base + front.security.sign(path)} for path in paths]
    else:
        data = [{"b64_json": each} for each in front.pictures_as_text(job)]
    for each, seed in zip(data, seeds, strict=False):
        each["seed"] = seed
    return {"created": int(job.created), "data": data, **_described(job, call), "usage": _usage(0), "job": job.id,
            "warnings": job.warnings}  # fmt: skip


async def _told(front: Front, http: Request, job: Job, call: Call, kind: str) -> AsyncIterator[dict[str, Any]]:
    """Yield partial pictures and then the pictures, as OpenAI streams them."""
    wanted, made = call.given.get("partial_images") or 0, 0
    try:
        async with front.watching(http, job):
            async for event in front.events(job):
                if event.preview is not None and made < wanted:
                    data = await asyncio.to_thread(_converted, event.preview, call)
                    told = {"b64_json": data, "created_at": int(time.time()), "partial_image_index": made}
                    yield _event(f"{kind}.partial_image", {**told, **_described(job, call)})
                    made += 1
        await front.drawn(http, job)
        for text in await asyncio.to_thread(front.pictures_as_text, job):
            told = {"b64_json": text, "created_at": int(time.time()), "usage": _usage(0)}
            yield _event(f"{kind}.completed", {**told, **_described(job, call)})
    except JobFailedError as error:
        yield {"event": "error", "data": json.dumps(error_form(front.problem(error)))}


def _converted(preview: bytes, call: Call) -> str:
    """Return a preview as base64 of the format that was asked for."""
    kind = call.output.get("format") or "png"
    if kind == "jpeg":
        return base64.b64encode(preview).decode()
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(preview)) as image:
        image.save(buffer, kind.upper())
    return base64.b64encode(buffer.getvalue()).decode()


def _event(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"event": kind, "data": json.dumps({"type": kind, **data})}
