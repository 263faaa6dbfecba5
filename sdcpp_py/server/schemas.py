"""What clients send and get, as pydantic models: those of a mode's options are made of their declarations."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from ..options.declare import REQUIRED, Option
from ..options.schema import Names, option_schema, said_of
from .model_list import MODES


def field_schema(option: Option, names: Names | None) -> dict[str, Any]:
    """Return the JSON schema of an option as a field, which may be null where it may be None; with its panel."""
    made = option_schema(option, names)
    if option.optional:
        made = {"anyOf": [made, {"type": "null"}], "description": said_of(option)}
    if option.opt.panel:
        made["x-panel"] = option.opt.panel
    if option.default_text:
        made["x-default"] = option.default_text
    return made


def fields_of(options: Mapping[str, Option], names: Names | None) -> dict[str, Any]:
    """Return the fields of a pydantic model for options; their values are checked where all options are, in intake."""
    made: dict[str, Any] = {}
    for name, option in options.items():
        if option.kind.in_json:
            hint = Annotated[Any, WithJsonSchema(field_schema(option, names))]
            default = ... if option.default is REQUIRED else None
            made[name] = (hint, Field(default))
    return made


class Strict(BaseModel):
    """A request without fields that nobody knows."""

    model_config = ConfigDict(extra="forbid")


class Output(Strict):
    """How what is drawn is written."""

    format: Literal["png", "jpeg", "webp", "avif", "gif", "mp4", "webm"] | None = Field(
        None, description="of pictures png (the default), jpeg, webp or avif; of videos webp, gif, png, mp4 or webm"
    )
    compression: int | None = Field(None, ge=0, le=100, description="quality of jpeg, webp and avif")
    metadata: bool = Field(True, description="whether files carry their parameters")


class JobBase(Strict):
    """What every job may say besides its options."""

    model: str | None = Field(None, description="name of the model or upscaler; by default the first one")
    output: Output = Field(default_factory=lambda: Output(format=None, compression=None, metadata=True))
    priority: int = Field(0, ge=-10, le=10, description="higher goes first")
    seconds: float | None = Field(None, gt=0, description="after which the job ends unfinished, waiting included")


def job_models(names: Names | None) -> list[type[JobBase]]:
    """Return the request of a job in each mode, told apart by ``mode``."""
    made = []
    for name, mode in MODES.items():
        title = name[0].upper() + name[1:]
        options = create_model(f"{title}Options", __base__=Strict, **fields_of(mode.declared, names))
        job = create_model(
            f"{title}Job",
            __base__=JobBase,
            __doc__=mode.title,
            mode=(_only(name), Field(description=mode.title)),
            options=(options, ...),
        )
        made.append(job)
    return made


def _only(word: str) -> Any:
    """Return the type of a text that is this one."""
    return Literal[word]


def names_from(facts: Mapping[str, Any]) -> Names:
    """Return the names of the engine's enums, as a worker told them."""
    return functools.partial(_names, facts["names"])


def _names(known: Mapping[str, list[str]], enum: str) -> list[str]:
    return known.get(enum, [])


# --- answers ----------------------------------------------------------------------------------------------------------


class ErrorBody(BaseModel):
    """What went wrong."""

    type: str = Field(description="name of the error")
    message: str = Field(description="one line that says what to do")
    engine_log: list[str] = Field(default_factory=list, description="the engine's last lines")


class ErrorAnswer(BaseModel):
    """An error."""

    error: ErrorBody


_ERRORS = {
    400: "something asked for is unknown, out of range or too large",
    401: "a token is needed",
    403: "the page that asks is of an origin that may not",
    404: "there is no such job, picture or model",
    408: "the rest of the body did not come in time",
    409: "a key was used for another request, or the job's state does not allow it",
    410: "the pictures are removed",
    413: "the request is too large",
    421: "the name that the server was called by is not known",
    429: "as many jobs wait as may; Retry-After says when to ask again",
    500: "a picture could not be drawn, or the server failed",
    503: "the server is ending, or no worker is ready",
    504: "a picture was not drawn in time",
    507: "the store cannot be written, or the memory of a device is too small",
}
DRAWING_ERRORS = (400, 404, 409, 429, 500, 503, 504, 507)
"""Of a call that is answered when its pictures are drawn."""


def errors(*statuses: int, form: Any = None) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of errors; *form* is the model of the answer, None for any JSON."""
    other: dict[str, Any] = {"content": {"application/json": {"schema": {"type": "object"}}}} if form is None else {}
    known = {"model": form} if form is not None else {}
    return {status: {"description": _ERRORS[status], **known, **other} for status in statuses}


class JobAnswer(BaseModel):
    """A job."""

    id: str
    state: Literal["queued", "loading", "running", "done", "failed", "cancelled"]
    mode: str
    model: str
    client: str
    priority: int
    source: str = Field(description="the API that it came through")
    created: float = Field(description="seconds since 1970, likewise the next ones")
    started: float | None
    ended: float | None
    deadline: float
    attempts: int = Field(description="how often a worker began with it")
    worker: str = Field(description="the last one that did; empty for none since the server was started")
    position: int = Field(0, description="how many jobs go before it, while it waits")
    options: dict[str, Any] = Field(description="as they were asked for; a picture is its number")
    progress: dict[str, Any] = Field(description="phase, step, steps, picture, pictures, seconds, bytes, fraction")
    pictures: list[str] = Field(description="paths of its pictures, or of its video; none once they are removed")
    seeds: list[int]
    warnings: list[str] = Field(description="what was asked for and had no effect, or was done otherwise")
    timings: dict[str, float] = Field(description="seconds of each phase")
    error: ErrorBody | None


class JobList(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobAnswer]


class Report(BaseModel):
    """Where weights lay, what was copied, and what was hidden behind compute."""

    parameters: dict[str, Any] = Field(description="what was done, by option")
    text: list[str] = Field(description="the parameters as each picture carries them")
    seeds: list[int]
    timings: dict[str, float]
    loras: list[dict[str, Any]]
    plan: dict[str, Any] = Field(description="where each module runs and its weights lie, and why")
    prediction: dict[str, Any] | None = Field(
        default=None, description="seconds that the planner said, and those that it took; null where it did not choose"
    )
    memory: dict[str, Any] = Field(description="where the weights really lay")
    transfer: dict[str, Any] = Field(description="bytes copied, their speed, what was hidden, resident and streamed")
    warnings: list[str]


class ModelAnswer(BaseModel):
    """A model or an upscaler."""

    name: str
    kind: Literal["model", "upscaler"]
    default: bool = Field(description="whether it draws where a request names none")
    loaded: list[str] = Field(description="the workers that hold it")
    defaults: dict[str, Any] = Field(description="options that are taken where a request gives none")
    loras: bool = Field(description="whether it has a folder of LoRAs")
    modes: list[str] | None = Field(description="the modes that it has; null until it was loaded once")


class WorkerAnswer(BaseModel):
    """A worker."""

    name: str
    ready: bool
    job: str | None = Field(description="the job that it is at")
    loaded: dict[str, int] = Field(description="models that it holds, with the bytes of their weights")
    resident: int = Field(description="bytes of memory that it has")
    restarts: int = Field(description="how often it was started again")


class ParametersAnswer(BaseModel):
    """What a picture was drawn with."""

    mode: str
    options: dict[str, Any]
    unmapped: dict[str, str] = Field(description="what the picture says and no option here is the same as")
