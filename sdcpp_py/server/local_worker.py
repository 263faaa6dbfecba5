"""A worker process of this machine, from the front's side: started, heard through its pipe, killed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .frames import pack, receive
from .worker import FramedWorker, WorkerLostError

log = logging.getLogger("sdcpp_py.server")

START_SECONDS = 120.0
_PIPE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def _command() -> list[str]:
    """Return what a worker is started with: it imports from where the front does, not from the current directory."""
    begin = f"import sys; sys.path[:] = {sys.path!r}; from sdcpp_py.server.work.__main__ import main; main()"
    return [sys.executable, "-c", begin]


def _tying() -> Callable[[], None] | None:
    """Return what a new process does before anything else, so that the system ends it when this one, the front, ends.

    Through its pipe one that is stopped does not hear of that, not even while its Python begins. None where the system
    does no such thing.
    """
    if sys.platform != "linux":
        return None
    import ctypes

    set_signal = functools.partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, int(signal.SIGKILL))
    front = os.getpid()

    def tie() -> None:
        set_signal()
        if os.getppid() != front:  # it has ended by now
            os._exit(1)

    return tie


@dataclass
class LocalWorker(FramedWorker):
    """A process of this machine."""

    _process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The id of the process, None where there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> dict[str, Any]:
        """Start the process, and return what it tells of its engine.

        Raises:
            WorkerLostError: it ended at once, or does not answer.
            BackendError: the engine cannot be loaded there.
        """
        self._reason = ""
        self._ready = asyncio.get_running_loop().create_future()
        self._process = await asyncio.create_subprocess_exec(
            *_command(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_PIPE_BYTES,
            env={**os.environ, "PYTHONUNBUFFERED": "1"}, preexec_fn=_tying(),
        )  # fmt: skip
        self._heard = time.monotonic()
        self._reader = asyncio.create_task(self._listen(self._process))
        return await self._started(START_SECONDS)

    def _post(self, message: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Have a frame sent; raise WorkerLostError where nobody takes it."""
        if self._process is None or self._process.stdin is None:
            raise WorkerLostError(f"{self.name} is not running")
        try:
            self._process.stdin.write(pack(message, blobs))
        except (ConnectionError, RuntimeError):
            raise WorkerLostError(f"{self.name} {self._reason or 'ended'}") from None

    async def _posted(self) -> None:
        """Return when there is room in the pipe; raise WorkerLostError where nobody takes what is in it."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            await self._process.stdin.drain()
        except (ConnectionError, RuntimeError):
            raise WorkerLostError(f"{self.name} {self._reason or 'ended'}") from None

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Take what the process says until it ends; then say so to whoever waits for it."""
        assert process.stdout is not None
        try:
            while True:
                frame = await receive(process.stdout)
                if self._process is process:
                    self._take(frame)
        except EOFError:
            pass
        except Exception as error:  # no frame, or more than there is memory for: unheard it is of no use
            log.exception("%s", self.name)
            self.kill(f"said what cannot be taken ({type(error).__name__})")
        status = await process.wait()
        if self._process is process:  # else it could not be killed in time, and another one has its place
            self._lost(f"was ended by signal {-status}" if status < 0 else f"ended with status {status}")

    def _end(self) -> None:
        """Kill the process."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self) -> None:
        """End the process: it has nothing to lose."""
        await super().stop()
        self._process = None
