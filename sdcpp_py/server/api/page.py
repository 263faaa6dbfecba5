"""``/``: the page, and the files that it is made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parents[1] / "page"
"""Where its files are; they are served as they lie there."""
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


class _Files(StaticFiles):
    """The files, as what they are: a browser runs no module that a system's own list calls something else."""

    def file_response(self, full_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Response:
        """Return a file, or that it has not changed."""
        response = super().file_response(full_path, *args, **kwargs)
        kind = _TYPES.get(os.path.splitext(full_path)[1])
        if kind and "content-type" in response.headers:
            response.headers["content-type"] = f"{kind}; charset=utf-8"
        response.headers["cache-control"] = "no-cache"  # asked for each time, and sent where it has changed
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page."""
    files = _Files(directory=FOLDER)
    app.mount("/page", files)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)
