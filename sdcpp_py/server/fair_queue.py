"""Which job is next: of the highest priority, of the client that was served least, and of its jobs the oldest."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from .jobs import Job


class FairQueue:
    """Waiting jobs.

    Work is counted by each job's cost when it is taken. A client that comes, or comes back, begins where the one that
    was served least among those that wait is: nobody saves up turns, and nobody waits for what others had before.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._turns = itertools.count(1)
        self._served: dict[str, float] = {}
        self._of: dict[str, dict[str, Job]] = {}
        # Of each client the first one is on top; what was removed stays until it is there.
        self._order: dict[str, list[tuple[int, int, str]]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs

    def count(self, client: str) -> int:
        """Return how many jobs of a client wait."""
        return len(self._of.get(client, ()))

    def add(self, job: Job) -> None:
        """Add a job."""
        if not self._of.get(job.client):
            least = min((self._served[each] for each, jobs in self._of.items() if jobs), default=0.0)
            self._served[job.client] = max(self._served.get(job.client, 0.0), least)
        self._jobs[job.id] = job
        job.turn = job.turn or next(self._turns)  # one that was tried before keeps its own
        self._of.setdefault(job.client, {})[job.id] = job
        heapq.heappush(self._order.setdefault(job.client, []), (-job.priority, job.turn, job.id))

    def remove(self, job: Job) -> None:
        """Remove a job; nothing is counted for it."""
        if self._jobs.pop(job.id, None) is None:
            return
        del self._of[job.client][job.id]
        if not self._of[job.client]:
            del self._of[job.client], self._order[job.client]
            if not self._of:
                self._served.clear()

    def next(self) -> Job | None:
        """Return the next job, which stays; None where there is none."""
        best: Job | None = None
        rank: tuple[float, float, float] = (0.0, 0.0, 0.0)
        for client, jobs in self._of.items():
            order = self._order[client]
            while order[0][2] not in jobs:
                heapq.heappop(order)
            job = jobs[order[0][2]]  # one that was tried before is the oldest
            this = (-job.priority, self._served[client], job.turn)
            if best is None or this < rank:
                best, rank = job, this
        return best

    def take(self, job: Job) -> None:
        """Remove a job that a worker begins with, and count its work."""
        served = self._served[job.client] + job.cost
        self.remove(job)
        if self._of or job.client in self._served:
            self._served[job.client] = served

    def position(self, job: Job) -> int:
        """Return roughly how many jobs go before one."""
        return sum(1 for each in self._jobs.values() if (-each.priority, each.turn) < (-job.priority, job.turn))

    def positions(self) -> dict[str, int]:
        """Return the same of all jobs, by their ids: for many at once it takes much less."""
        order = sorted(self._jobs.values(), key=lambda job: (-job.priority, job.turn))
        return {job.id: number for number, job in enumerate(order)}
