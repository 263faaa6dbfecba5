"""What clients of OpenAI's Images API send: fields, and pictures as files of a form or as data URLs in JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from ...errors import ArgumentError
from ...modes import INPAINT
from ...options.checks import show
from ..front import json_object
from ..model_list import MODES
from ..schemas import Strict
from .native_fields import from_text

_INDEX = re.compile(r"\[\d*\]$")  # image[], image[0]: how clients write lists in forms
_PICTURES = {"image": "images", "images": "images", "mask": "masks"}


class Images(Strict):
    """What the three calls share; any option of the mode may stand beside it."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="a name of /v1/models; OpenAI's own names mean the default one")
    n: int | None = Field(None, ge=1, le=128, description="number of pictures")
    size: str | None = Field(None, description="WIDTHxHEIGHT, or auto: the model's own, of an edit the picture's")
    quality: str | None = Field(None, description="has no effect: say steps")
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp", "avif"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    user: str | None = Field(None, description="end user, for fairness between them")
    safety_identifier: str | None = Field(None, description="the same; goes before user")


@dataclass
class Sent:
    """What a call with pictures sends.

    Attributes:
        images: files, base64 or data URLs.
        masks: likewise.
        given: the other fields.
    """

    images: list[Any] = field(default_factory=list)
    masks: list[Any] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)

    def take(self, name: str, value: Any) -> bool:
        """Take a picture, and tell whether a field of this name is one."""
        place = _PICTURES.get(_INDEX.sub("", name))
        if place is not None:
            getattr(self, place).append(value)
        return place is not None


async def sent_by(http: Request) -> Sent:
    """Return what a call with pictures sends, as a form or as JSON.

    Raises:
        ArgumentError: a field is sent twice, is a file that is not taken here, or cannot be read.
        RefusedError: the body is no JSON object.
        RequestValidationError: a field that the calls share is not of its type.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    return _of_json(await json_object(http)) if kind == "application/json" else await _of_form(http)


async def _of_form(http: Request) -> Sent:
    """Return what a form sends."""
    sent = Sent()
    texts: dict[str, str] = {}
    async with http.form() as form:
        for name, value in form.multi_items():
            is_file = isinstance(value, UploadFile)
            if sent.take(name, await value.read() if isinstance(value, UploadFile) else value):
                continue
            if is_file:
                raise ArgumentError(f"{show(name)} is no file that is taken here; image and mask are")
            if (plain := _INDEX.sub("", name)) in texts:
                raise ArgumentError(f"{show(plain)} is sent more than once; send it once")
            texts[plain] = str(value)
    # What is left empty in a form is not given; a prompt may be empty.
    texts = {name: text for name, text in texts.items() if text or name.endswith("prompt")}
    declared = {**MODES["edit"].declared, **INPAINT.declared}
    own = {name: text for name, text in texts.items() if name not in Images.model_fields}
    read = {name: from_text(declared[name], text) if name in declared else text for name, text in own.items()}
    sent.given = {**read, **_shared(texts)}
    return sent


def _of_json(body: Mapping[str, Any]) -> Sent:
    """Return what a JSON object sends, whose pictures are data URLs."""
    sent = Sent()
    for name, value in body.items():
        if name not in _PICTURES:
            sent.given[name] = value
        elif value is not None:
            for each in value if isinstance(value, list) else [value]:
                sent.take(name, _referred(name, each))
    sent.given |= _shared(sent.given)
    return sent


def _referred(name: str, value: Any) -> Any:
    """Return the picture that OpenAI's reference of one means: an object with its address, or the address itself."""
    if not isinstance(value, Mapping):
        return value
    if value.get("image_url") is None:
        raise ArgumentError(f"{name} must have an image_url with a data URL: no files are kept here by file_id")
    return value["image_url"]


def _shared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the calls share, of their types."""
    try:
        known = {name: value for name, value in given.items() if name in Images.model_fields}
        return Images.model_validate(known).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None


def own_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a call asks of its mode alone."""
    return {name: value for name, value in given.items() if name not in Images.model_fields}


def body_schema(*names: str) -> dict[str, Any]:
    """Return what the OpenAPI document says of a call with pictures; *names* are the fields of its form."""
    files = {"image", "image[]", "mask"}
    binary, text = {"type": "string", "format": "binary"}, {"type": "string"}
    fields = Images.model_json_schema()["properties"]
    form = {**{name: binary if name in files else text for name in names}, **fields}
    reference = {"type": "object", "properties": {"image_url": {**text, "description": "a data URL"}},
                 "required": ["image_url"]}  # fmt: skip
    pictures = {"images": {"type": "array", "items": reference, "minItems": 1},
                **({"mask": reference} if "mask" in names else {})}  # fmt: skip
    json = {**pictures, **{name: text for name in names if name not in files}, **fields}

    def schema(properties: dict[str, Any], required: str) -> dict[str, Any]:
        of = {"type": "object", "properties": properties, "required": [required], "additionalProperties": True}
        return {"schema": of}

    content = {"multipart/form-data": schema(form, "image"), "application/json": schema(json, "images")}
    return {"requestBody": {"content": content, "required": True}}
