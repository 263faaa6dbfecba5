"""The server as an application of Ray Serve: the same APIs, whose workers are actors of the cluster.

``serve run sdcpp_py.server.ray_app:build models_file=/models/models.toml store=/shared/store`` starts it; the arguments
are the options of ``sdcpp serve`` and of loading a model, by their names. One replica has the queue and the store; the
actors draw.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ArgumentError
from ..modes import LOADING
from ..options.kinds import UnreadableError
from .ray_worker import ray_workers
from .serve import SERVING, checked, fronted


def _given(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the server and of loading that arguments name; texts are read as flags' values are.

    Raises:
        ArgumentError: there is no such option, or a text is no value of it.
    """
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name, value in arguments.items():
        options, made = (SERVING, found[0]) if name in SERVING else (LOADING.declared, found[1])
        if name not in options or not options[name].kind.in_json:
            raise ArgumentError(f"{name} is no option of the server or of loading; see docs/options.md")
        try:
            made[name] = options[name].kind.read(value, options[name]) if isinstance(value, str) else value
        except UnreadableError as error:
            raise ArgumentError(f"{name}: {error}") from None
    return found


class Application:
    """The application; what is behind it is started and stopped by the lifespan events of ASGI.

    Args:
        arguments: options of the server and of loading.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = dict(arguments)
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or live."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start at the first event, and stop at the second one."""
        own, loading = _given(self._arguments)
        async with contextlib.AsyncExitStack() as stack:
            await receive()
            front = fronted(checked(own), loading, functools.partial(ray_workers, "auto"), here=False)
            try:
                self._app, _ = await stack.enter_async_context(front)
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """Return the application for ``serve run`` and for Serve's configuration files.

    Args:
        arguments: options of the server and of loading, by name; their values may be texts.

    Raises:
        ArgumentError: there is no such option, or a value is none of its option.
    """
    checked(_given(arguments)[0])

    # One alone has the store; its work is waiting, so that it takes no share of a node from the actors that draw.
    @serve.deployment(name="sdcpp", num_replicas=1, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0})
    @serve.ingress(Application(arguments))
    class Server:
        pass

    bound: serve.Application = Server.bind()  # type: ignore[attr-defined]
    return bound
