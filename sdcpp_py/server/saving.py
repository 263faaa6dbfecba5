"""Jobs' states and pictures, brought into the store; what it cannot take now it gets later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from .jobs import Job, Keeper, StoreError
from .pool import Pool

log = logging.getLogger("sdcpp_py.server")

_RETRY_SECONDS = 5.0
_FULL_SECONDS = 30.0  # in which a store that is full may have room again, before what is drawn is given up
_FULL_RETRY_SECONDS = 1.0


class Saving:
    """Keeps what changed of jobs, and their pictures.

    Args:
        store: where.
        pool: runs what waits for the store to be writable again.
        on_room: called when a store that was full is so no more.
    """

    def __init__(self, store: Keeper, pool: Pool, on_room: Callable[[], object]) -> None:
        self._store = store
        self._pool = pool
        self._on_room = on_room
        self._left: dict[str, Job] = {}
        self._full: set[str] = set()  # jobs for whose pictures there is no room yet

    @property
    def is_full(self) -> bool:
        """Whether pictures wait for room: what is drawn now would wait, too."""
        return bool(self._full)

    async def write_pictures(self, job: Job, files: Sequence[bytes], suffix: str) -> list[str]:
        """Keep a job's pictures, and return their names; where there is no room for them that is tried for a while.

        Raises:
            StoreError: they cannot be kept.
        """
        end = time.monotonic() + _FULL_SECONDS
        try:
            while True:
                try:
                    return await asyncio.to_thread(self._store.write_pictures, job, files, suffix)
                except StoreError as error:
                    if error.lasts or time.monotonic() > end:
                        raise
                    if job.id not in self._full:
                        log.warning("job %s: %s; it is tried again", job.id, error)
                self._full.add(job.id)
                await asyncio.sleep(_FULL_RETRY_SECONDS)
        finally:
            if job.id in self._full:
                self._full.remove(job.id)
                self._on_room()

    def save(self, job: Job) -> None:
        """Keep a job's state; where the store cannot be written now, later."""
        try:
            self._store.update(job)
            self._left.pop(job.id, None)
        except StoreError as error:
            log.error("job %s: %s", job.id, error)
            if not self._left and not self._pool.is_stopping:
                self._pool.spawn(self._save_later())
            self._left[job.id] = job

    async def _save_later(self) -> None:
        """Keep what is left when the store can be written again."""
        while self._left:
            await asyncio.sleep(_RETRY_SECONDS)
            self.save_left()

    def save_left(self) -> None:
        """Keep what is left, as far as the store can be written now."""
        with contextlib.suppress(StoreError):
            for job in list(self._left.values()):
                self._store.update(job)
                self._left.pop(job.id)

    def get(self, job: str) -> Job | None:
        """Return a job of which the store has an earlier state, None where there is none of this id."""
        return self._left.get(job)

    def forget(self, job: str) -> None:
        """Keep no more of a job."""
        self._left.pop(job, None)
