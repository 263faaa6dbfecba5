"""The states of jobs, kept in the store as they change; what it cannot take now it gets later."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from .jobs import Job, Keeper, StoreError
from .pool import Pool

log = logging.getLogger("sdcpp_py.server")

_RETRY_SECONDS = 5.0


class Saving:
    """Keeps what changed of jobs.

    Args:
        store: where.
        pool: runs what waits for the store to be writable again.
    """

    def __init__(self, store: Keeper, pool: Pool) -> None:
        self._store = store
        self._pool = pool
        self._left: dict[str, Job] = {}

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
