"""A worker process of this machine, from the front's side: started, heard through its pipe, killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .frames import pack, receive
from .worker import FramedWorker, WorkerLostError

log = logging.getLogger("sdcpp_py.server")

START_SECONDS = 120.0
_PIPE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_BEGIN = f"""
import contextlib, runpy, sys
if sys.platform == "linux":
    import ctypes
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(getattr(signal, "SIGKILL", 9))})
runpy.run_module("sdcpp_py.server.work", run_name="__main__", alter_sys=True)
"""
"""What a worker begins with, before anything else is imported: the system ends it with the front. One that is stopped
by then would not hear of it through its pipe."""


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
            sys.executable, "-c", _BEGIN,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_PIPE_BYTES,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
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
