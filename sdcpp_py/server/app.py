"""The application: the APIs put together, errors in each one's own form, and a start and an end that lose nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from .._version import __version__
from ..errors import SdcppError
from .api import a1111, native, openai, own
from .api.page import add_page
from .front import Front, Problem
from .schemas import errors
from .security import Guard

log = logging.getLogger("sdcpp_py.server")

Form = Callable[[Problem], dict[str, Any]]


_LONGEST_MESSAGE = 500  # some repeat what was sent
_NOT_PARSED = "the body cannot be read; send a JSON object in UTF-8, nested less, with shorter numbers"


def _own_form(said: Problem) -> dict[str, Any]:
    """Return an error as our own API has it."""
    return {"error": {"type": said.kind, "message": said.message, "engine_log": list(said.engine_log)}}


FORMS: dict[str, Form] = {"/v1/": openai.error_form, "/sdapi/": a1111.error_form, "/sdcpp/": native.error_form}
"""The form of errors of other APIs, by the beginning of their paths."""


def _answer(request: Request, said: Problem) -> Response:
    form = next((each for start, each in FORMS.items() if request.scope["path"].startswith(start)), _own_form)
    return JSONResponse(form(said), said.status, headers=dict(said.headers or {}))


def _validation_message(error: RequestValidationError) -> str:
    """Return what is wrong with a request, in a line."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
    if first["loc"] == ("body",) and isinstance(first.get("input"), bytes):
        return "the body must be JSON, sent with Content-Type: application/json"
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    said = {"extra_forbidden": "is no field here", "missing": "is missing"}.get(first["type"], first["msg"])
    return f"{where}: {said}"[:_LONGEST_MESSAGE]


def make_app(front: Front) -> ASGIApp:
    """Return the application; the scheduler must have been started, for its facts are in the schema."""
    # As bodies of JSON have it: what a client sends may not fail for a folder of temporary files that is full.
    MultiPartParser.spool_max_size = front.security.upload
    app = FastAPI(
        title="sdcpp-py",
        version=__version__,
        description="Pictures and videos from text with stable-diffusion.cpp.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # its pages come from elsewhere
        redoc_url=None,
        responses=errors(401, 403, 408, 413, 421),
    )
    for each in (own, openai, a1111, native):
        app.include_router(each.router(front))
    add_page(app)

    @app.exception_handler(SdcppError)
    async def failed(request: Request, error: Exception) -> Response:
        return _answer(request, front.problem(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _answer(request, Problem(400, "ArgumentError", _validation_message(error)))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = _NOT_PARSED if error.detail == "There was an error parsing the body" else str(error.detail)
        return _answer(request, Problem(error.status_code, "HTTPError", said, headers=error.headers))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # whom nobody reads: the client went away in the middle of its body

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        log.exception("%s %r", request.method, request.scope["path"], exc_info=error)
        return _answer(request, Problem(500, "InternalError", "the server failed at this; its log says why"))

    make_schema = app.openapi

    def schema() -> dict[str, Any]:
        made = make_schema()
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # what is invalid is answered with 400, as all else that is
        return made

    app.openapi = schema  # type: ignore[method-assign]
    return Guard(app, front.security)
