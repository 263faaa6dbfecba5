"""From the command's options to a running server, and to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ..errors import OutputError
from ..images import failure_reason
from ..options.declare import declared
from ..options.serving import ServingOptions
from ..reports import GIB
from .app import make_app
from .connection import Connection
from .folders import Folders
from .front import Front
from .intake import Bounds, Intake
from .jobs import Limits
from .metrics import Metrics
from .model_list import ServedModel, served_models
from .scheduler import Scheduler
from .security import make_security, read_tokens
from .store import Store
from .worker import Worker
from .workers import make_workers

_CLOSING_SECONDS = 3  # for answers after what is under way had its time
_READING_SECONDS = 60.0  # without taking any of an answer, after which a client counts as gone
SERVING = declared(ServingOptions)
"""Every option of the server."""


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for every option of the server.

    Raises:
        ArgumentError: a value is out of range or of the wrong type.
    """
    return {name: option.check(given.get(name, option.default)) for name, option in SERVING.items()}


def state_folder() -> Path:
    """Return where jobs are kept unless another folder is named: in the user's folder for state."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "sdcpp-py" / "server"


class _Server(uvicorn.Server):
    """Uvicorn's server, which answers on until what is under way has ended.

    Args:
        config: uvicorn's.
        scheduler: of the jobs.
        seconds: that what is under way has left.
    """

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, seconds: float) -> None:
        super().__init__(config)
        self._scheduler = scheduler
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end the server; those of before are back afterwards, and none is raised again."""
        names = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        # Not uvicorn's own method: streams would be cut that tell of what is still under way.
        before = {number: signal.signal(number, self._signalled) for number in names}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        """End: nothing new is taken, what is under way has its time; a second signal ends at once."""
        if self._draining is None:
            self._scheduler.drain(self._seconds)
            self._draining = self._loop.create_task(self._drain())
        else:
            self._scheduler.drain(0.0)
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        """Close when nothing is under way any more: until then clients may ask how their jobs are."""
        await self._scheduler.drained()
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        OutputError: there is no such address here, or it is taken.
    """
    # With the protocol named: asyncio sends at once (TCP_NODELAY) on such sockets alone.
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol or socket.IPPROTO_TCP)
        try:
            if os.name == "posix":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections have it of the socket that took them
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * _READING_SECONDS))
            listening.bind(address)
            listening.listen(2048)
        except BaseException:
            listening.close()
            raise
        return listening
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else failure_reason(error)
        raise OutputError(f"{host}:{port} cannot be listened on ({reason}); choose another --host or --port") from None


@contextlib.asynccontextmanager
async def fronted(
    values: Mapping[str, Any],
    loading: Mapping[str, Any],
    workers: Callable[[Mapping[str, Any], Mapping[str, ServedModel]], Sequence[Worker]] = make_workers,
    here: bool = True,
) -> AsyncIterator[tuple[ASGIApp, Scheduler]]:
    """Yield the application, and the scheduler behind it, which has been started and is stopped afterwards.

    Args:
        values: a value for each option of the server.
        loading: options of loading the one model, where no models file is given.
        workers: makes the workers, of the values and the models.
        here: whether this machine loads the models, so that their files must be here.

    Raises:
        SdcppError: an option is wrong, the store cannot be had, or the engine cannot be loaded.
    """
    models = served_models(values, loading, here)
    tokens = read_tokens(values["token_file"])
    hosts, origins = (values[name].split(",") for name in ("allowed_hosts", "cors_origins"))
    security = make_security(values["host"], tokens, hosts, origins, int(values["max_upload"] * 2**20))
    store = Store(Path(values["store"] or state_folder()), values["store_limit"] * GIB)
    try:
        limits = Limits(values["queue_size"], values["client_queue"] or values["queue_size"], values["job_seconds"])
        folders = Folders([str(store.folder), *(path for model in models.values() for path in model.paths)])
        scheduler = Scheduler(models, workers(values, models), store, limits, folders.told)
        try:
            await scheduler.start()
            intake = Intake(models, Bounds(security.upload, int(values["max_pixels"] * 1e6)))
            metrics = Metrics(scheduler, store)
            front = Front(scheduler, store, intake, security, metrics, folders, values["cancel_on_disconnect"])
            yield make_app(front), scheduler
        finally:
            await scheduler.stop()
    finally:
        store.close()


async def serve(
    given: Mapping[str, Any], loading: Mapping[str, Any], ready: Callable[[str], object] = lambda address: None
) -> None:
    """Serve until a signal ends it.

    Args:
        given: options of the server.
        loading: options of loading the one model, where no models file is given.
        ready: called with the address when requests are taken.

    Raises:
        SdcppError: an option is wrong, the store or the port cannot be had, or the engine cannot be loaded.
    """
    values = checked(given)
    async with fronted(values, loading) as (app, scheduler):
        config = uvicorn.Config(
            app,
            host=values["host"],
            port=values["port"],
            http=Connection,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",  # whatever is installed: there is nothing here that speaks it
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        server = _Server(config, scheduler, values["drain_seconds"])
        with _listen(values["host"], values["port"]) as listening:
            address = listening.getsockname()
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            ready(f"http://{host}:{address[1]}")
            await server.serve([listening])


def run(given: Mapping[str, Any], loading: Mapping[str, Any], ready: Callable[[str], object]) -> None:
    """Serve until a signal ends it; the arguments and errors are those of :func:`serve`."""
    loop: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    with contextlib.suppress(ImportError):  # there is none for Windows
        from uvloop import run as loop
    loop(serve(given, loading, ready))
