"""Calls that are awaited: each works in a thread of its own, and is cancelled with the task that awaits it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from . import engine

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """Return what a function returns that calls the engine.

    The function is called in a thread of its own, so that its callbacks are, too. When the task is cancelled, so are
    the engine's calls that it makes, and no others; it is waited for.
    """
    import asyncio  # with the next, a third of what importing this package takes
    from concurrent.futures import ThreadPoolExecutor

    call = engine.Call()

    def run() -> T:
        with engine.watched(call):
            return function()

    executor = ThreadPoolExecutor(1, thread_name_prefix="sdcpp_py")
    context = contextvars.copy_context()
    future = asyncio.get_running_loop().run_in_executor(executor, lambda: context.run(run))
    executor.shutdown(wait=False)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        call.cancel()
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # whatever it is: the task's own cancel says more
        raise


async def each_in_thread(items: Iterator[T]) -> AsyncIterator[T]:
    """Yield what an iterator yields that calls the engine."""
    end = object()
    while (item := await in_thread(lambda: next(items, end))) is not end:
        yield item  # type: ignore[misc]
