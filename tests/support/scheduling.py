"""A scheduler over workers that are told what to do, and what to ask it for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from sdcpp_py.server.jobs import (
    Limits,
    Request,
)
from sdcpp_py.server.model_list import ServedModel
from sdcpp_py.server.scheduler import Scheduler
from sdcpp_py.server.store import Store

from .fake_worker import FakeWorker

MODELS = {name: ServedModel(name) for name in ("a", "b")}


def asked(prompt: str = "x", **more: Any) -> Request:
    return Request("txt2img", more.pop("model", "a"), {"prompt": prompt, **more.pop("options", {})}, **more)


@contextlib.asynccontextmanager
async def scheduling(
    folder: Path, workers: Sequence[FakeWorker], limits: Limits | None = None, store_limit: float = 1e9
) -> AsyncIterator[Scheduler]:
    store = Store(folder / "store", store_limit)
    scheduler = Scheduler(MODELS, workers, store, limits)
    await scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.stop()
        store.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))
