"""A worker that is told what to do: no process is started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdcpp_py.server.worker import Outcome, Told, WorkerLostError


class FakeWorker:
    """A worker that draws at once unless it is held, and dies as often as it is told to."""

    def __init__(self, name: str = "worker", deaths: int = 0) -> None:
        self.name = name
        self.loaded: Mapping[str, int] = {}
        self.resident = 0
        self.on_lost: Callable[[], object] | None = None
        self.deaths = deaths
        self.starts = 0
        self.drawn: list[str] = []
        self.held = asyncio.Event()
        self.held.set()
        self.cancelled: set[str] = set()

    async def start(self) -> dict[str, Any]:
        self.starts += 1
        return {"names": {}, "defaults": {}, "devices": []}

    async def run(self, job: str, request: Mapping[str, Any], pictures: Sequence[bytes], told: Told) -> Outcome:
        told({"phase": "loading", "fraction": 0.0}, None)
        self.loaded = {request["model"]: 1}
        told({"phase": "sampling", "fraction": 0.5}, b"preview")
        while not self.held.is_set() and job not in self.cancelled:
            await asyncio.sleep(0.005)
        if self.deaths:
            self.deaths -= 1
            raise WorkerLostError(f"{self.name} was ended by signal 9")
        if job in self.cancelled:
            return Outcome(error={"type": "CancelledError", "message": "cancelled by cancel()"})
        if request["options"]["prompt"] == "fail":
            return Outcome(error={"type": "DeviceMemoryError", "message": "too large"})
        self.drawn.append(str(request["options"]["prompt"]))
        return Outcome([b"picture", *pictures], {"seeds": [1]})

    async def cancel(self, job: str) -> None:
        self.cancelled.add(job)

    async def unload(self, model: str) -> None:
        self.loaded = {}

    def look(self) -> None:
        pass

    async def stop(self) -> None:
        pass
