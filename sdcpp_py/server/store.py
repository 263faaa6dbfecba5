"""Jobs and pictures on disk: SQLite for what is known of a job, a folder for pictures, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import ArgumentError
from ..images import failure_reason
from .jobs import Job, StoreError

log = logging.getLogger("sdcpp_py.server")

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, client TEXT NOT NULL, priority INTEGER NOT NULL, created REAL NOT NULL, deadline REAL NOT NULL,
    started REAL, ended REAL, state TEXT NOT NULL, attempts INTEGER NOT NULL, request TEXT NOT NULL,
    inputs INTEGER NOT NULL, files TEXT NOT NULL, bytes INTEGER NOT NULL, result TEXT, error TEXT,
    key TEXT NOT NULL, digest TEXT NOT NULL, source TEXT NOT NULL, prompt TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_state ON jobs (state, created);
DROP INDEX IF EXISTS jobs_created;
CREATE INDEX IF NOT EXISTS jobs_listed ON jobs (created, client, prompt); -- by itself what lists are looked up in
CREATE UNIQUE INDEX IF NOT EXISTS jobs_key ON jobs (client, key) WHERE key != '';
"""
_FIELDS = (
    "id", "client", "priority", "created", "deadline", "started", "ended", "state", "attempts", "request", "inputs",
    "files", "bytes", "result", "error", "key", "digest", "source", "prompt",
)  # fmt: skip
_BASE = "jobs.sqlite"
_JOB = re.compile("[0-9a-f]{32}")
_PICTURE = re.compile(rf"\.?{_JOB.pattern}-\d+\.\w+(\.part)?")
_MOST_JOBS = 100_000  # that are remembered without their pictures
_MOST_BASE = 1 << 30  # bytes that the data base may take, with long prompts, before it forgets more of them
_PRUNE_EVERY = 1000  # jobs that end, those beyond that are forgotten
_BUSY_SECONDS = 0.25  # for another program that has the data base locked: the whole server waits meanwhile
_UNFINISHED = ("queued", "loading", "running")


@contextlib.contextmanager
def _stored(folder: Path) -> Iterator[None]:
    """Make one-line errors of what SQLite and the system raise."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"store {folder} cannot be used ({failure_reason(error)}); see to its disk") from None
        said = f"{folder / _BASE} is damaged ({failure_reason(error)}); move it away and start the server anew"
        raise StoreError(said) from None
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"store {folder} cannot be used ({failure_reason(error)}); see to its disk") from None


def open_locked(path: Path, used: str) -> IO[str]:
    """Return a file that is locked as long as it is open; a process that ends, however, gives it back.

    Raises:
        ArgumentError: another process has it; the message is *used*.
    """
    file = path.open("w")
    try:
        import fcntl
    except ImportError:  # Windows: two on one folder are not told apart there
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ArgumentError(used) from None
    return file


def request_digest(request: dict[str, Any], pictures: Sequence[bytes]) -> str:
    """Return a digest by which two requests are told apart."""
    made = hashlib.sha256(json.dumps(request, sort_keys=True).encode())
    for picture in pictures:
        made.update(hashlib.sha256(picture).digest())
    return made.hexdigest()


def _names(row: sqlite3.Row) -> list[str]:
    """Return the names of a row's pictures; none where it is damaged."""
    try:
        return [str(name) for name in json.loads(row["files"])]
    except (ValueError, TypeError):
        return []


class Store:
    """The jobs of a server, in a folder. One server at a time may have it open.

    Args:
        folder: where; it is made.
        limit: bytes of pictures that are kept.

    Attributes:
        folder: where.
        bytes: of the pictures that are kept.

    Raises:
        StoreError: the folder cannot be written.
        ArgumentError: another server has it open, or a newer version of this package made it.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self._limit = limit
        self._waiting: dict[str, int] = {}  # bytes of the pictures that go into each job that has not ended
        self._room = threading.RLock()  # pictures are written in threads, one job at a time
        self._ended = 0
        with contextlib.ExitStack() as opened, _stored(self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts and pictures are its owner's
            self._pictures.mkdir(exist_ok=True)
            self._inputs.mkdir(exist_ok=True)
            used = f"store {folder} is in use by another server; choose another --store"
            opened.enter_context(open_locked(folder / "lock", used))
            self._base = sqlite3.connect(
                folder / _BASE, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS
            )
            opened.callback(self._base.close)
            self._base.row_factory = sqlite3.Row
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            (version,) = self._base.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise ArgumentError(f"store {folder} is of version {version}, this package's is {_VERSION}")
            self._base.executescript(_SCHEMA)
            self._base.execute(f"PRAGMA user_version={_VERSION}")
            (size,) = self._base.execute("SELECT coalesce(sum(bytes), 0) FROM jobs").fetchone()
            self.bytes: int = size
            if version:  # of a new one nobody knows whose that is which lies there
                self._sweep()
            self._opened = opened.pop_all()

    @property
    def _pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def _inputs(self) -> Path:
        return self.folder / "inputs"

    def close(self) -> None:
        """Close the files."""
        self._opened.close()

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def add(self, job: Job, pictures: Sequence[bytes]) -> None:
        """Keep a new job and the pictures that go into it.

        Raises:
            StoreError: it cannot be written; nothing of it is kept.
        """
        size = sum(map(len, pictures))
        if size and sum(self._waiting.values()) + size > self._limit:
            raise StoreError("the pictures that go into waiting jobs fill the store; ask later, or raise --store-limit")
        try:
            with _stored(self.folder):
                if not (self.folder / _BASE).exists():  # what is written to it now is lost with this process
                    raise StoreError(f"store {self.folder} was removed; start the server anew")
                if pictures:
                    folder = self._inputs / job.id
                    folder.mkdir(parents=True)
                    for index, picture in enumerate(pictures):
                        self._write(folder / str(index), picture, lasting=False)
                self._put(job)
                self._waiting[job.id] = size
        except StoreError:
            shutil.rmtree(self._inputs / job.id, ignore_errors=True)
            raise

    def update(self, job: Job) -> None:
        """Keep what changed of a job.

        Raises:
            StoreError: it cannot be written.
        """
        with _stored(self.folder):
            if job.is_over:
                self._put(job)
                self._ended += 1
                if self._ended % _PRUNE_EVERY == 0:
                    self._prune()
                return
            changed = (job.state, job.attempts, job.started, job.id)
            self._base.execute("UPDATE jobs SET state = ?, attempts = ?, started = ? WHERE id = ?", changed)

    def _put(self, job: Job) -> None:
        size = sum(self._size(name) for name in job.files) + (self._input_bytes(job.id) if job.is_over else 0)
        row = {
            **{name: getattr(job, name) for name in _FIELDS if hasattr(job, name)},
            "request": json.dumps(job.request),
            "files": json.dumps(job.files),
            "result": None if job.result is None else json.dumps(job.result),
            "error": None if job.error is None else json.dumps(job.error),
            "bytes": size,
            "prompt": str(job.request["options"].get("prompt", "")).casefold(),  # SQLite's lower() knows ASCII alone
        }
        marks = ", ".join(f":{name}" for name in _FIELDS)
        self._base.execute(f"INSERT OR REPLACE INTO jobs ({', '.join(_FIELDS)}) VALUES ({marks})", row)

    def _jobs(self, rows: Iterable[sqlite3.Row]) -> list[Job]:
        """Return the jobs of rows; what is none is left out: one damaged job is no end of all others."""
        found = []
        for row in rows:
            values = {name: row[name] for name in _FIELDS if name not in ("bytes", "prompt")}
            try:
                for name in ("request", "files", "result", "error"):
                    values[name] = None if values[name] is None else json.loads(values[name])
                job = Job(**values)
                job.to_dict(), job.request["output"]
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                log.error("job %s of %s is damaged (%s)", row["id"], self.folder / _BASE, failure_reason(error))
                continue
            found.append(job)
        return found

    def _selected(self, query: str, values: Sequence[Any]) -> list[Job]:
        """Return jobs, by what follows FROM in a query."""
        with _stored(self.folder):
            rows = self._base.execute(f"SELECT {', '.join(_FIELDS)} FROM jobs {query}", values).fetchall()
        return self._jobs(rows)

    def get(self, job: str) -> Job | None:
        """Return a job, None where there is none of this id."""
        return next(iter(self._selected("WHERE id = ?", (job,))), None)

    def by_key(self, client: str, key: str) -> Job | None:
        """Return the job of a client's idempotency key, None where it was not used."""
        return next(iter(self._selected("WHERE client = ? AND key = ?", (client, key))), None)

    def unfinished(self) -> list[Job]:
        """Return the jobs that have not ended, the oldest first."""
        return self._selected("WHERE state IN (?, ?, ?) ORDER BY created", _UNFINISHED)

    def listed(
        self, *, state: str = "", client: str = "", search: str = "", before: float | None = None, limit: int = 50
    ) -> list[Job]:
        """Return jobs, the newest first.

        Args:
            state: of this state alone.
            client: of this client alone.
            search: words in the prompt.
            before: created before this time, in seconds since 1970.
            limit: so many at most.
        """
        where, values = ["1"], list[Any]()
        for name, value in (("state", state), ("client", client)):
            if value:
                where.append(f"{name} = ?")
                values.append(value)
        for word in search.split():
            where.append("instr(lower(prompt), ?) > 0")
            values.append(word.casefold())
        if before is not None:
            where.append("created < ?")
            values.append(before)
        return self._selected(f"WHERE {' AND '.join(where)} ORDER BY created DESC LIMIT ?", (*values, limit))

    def remove(self, job: Job) -> None:
        """Forget a job that has ended, and its pictures."""
        with _stored(self.folder):
            row = self._base.execute("SELECT bytes FROM jobs WHERE id = ?", (job.id,)).fetchone()
            # Files first, here and below: on a full disk they make the room that the data base needs.
            self._discard(job.id, job.files)
            self._base.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
            with self._room:
                self.bytes -= 0 if row is None else row["bytes"]

    # --- pictures -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _write(file: Path, data: bytes, lasting: bool = True) -> None:
        """Write a file beside its place, and move it there; where it is to last, only when the disk has it."""
        part = file.with_name(f".{file.name}.part")
        try:
            with part.open("wb") as written:
                written.write(data)
                written.flush()
                if lasting:
                    os.fsync(written.fileno())
            part.replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _size(self, name: str) -> int:
        try:
            return (self._pictures / name).stat().st_size
        except OSError:
            return 0

    def inputs(self, job: Job) -> list[bytes]:
        """Return the pictures that go into a job.

        Raises:
            StoreError: they are gone.
        """
        with _stored(self.folder):
            return [(self._inputs / job.id / str(index)).read_bytes() for index in range(job.inputs)]

    def write_pictures(self, job: Job, files: Sequence[bytes], suffix: str) -> list[str]:
        """Write a job's pictures, after the oldest ones have made room; return their names. Safe from any thread.

        Raises:
            StoreError: they cannot be written; none of them is kept.
        """
        names = [f"{job.id}-{index}.{suffix}" for index in range(len(files))]
        with self._room:
            self._make_room(sum(map(len, files)), job.id)
            try:
                with _stored(self.folder):
                    self._pictures.mkdir(exist_ok=True)  # people empty it by removing it
                    for name, data in zip(names, files, strict=True):
                        self._write(self._pictures / name, data)
                self.bytes += sum(map(len, files))
            except StoreError:
                for name in names:
                    with contextlib.suppress(OSError):
                        (self._pictures / name).unlink(missing_ok=True)
                raise
        return names

    def picture(self, job: Job, index: int) -> Path | None:
        """Return the file of a picture, None where there is none, or none any more."""
        if not 0 <= index < len(job.files):
            return None
        file = self._pictures / job.files[index]
        return file if file.is_file() else None

    def _discard(self, job: str, names: Sequence[str]) -> None:
        """Remove a job's pictures, and those that went in, as far as they are there."""
        for name in names:
            with contextlib.suppress(OSError):
                (self._pictures / name).unlink(missing_ok=True)
        shutil.rmtree(self._inputs / job, ignore_errors=True)

    def _make_room(self, size: int, keep: str) -> None:
        """Remove the oldest pictures until so many bytes more fit."""
        while self.bytes + size > self._limit:
            with _stored(self.folder):
                row = self._base.execute(
                    "SELECT * FROM jobs WHERE bytes > 0 AND id != ? ORDER BY ended LIMIT 1", (keep,)
                ).fetchone()
                if row is None:
                    said = "the pictures of one job are more than the store may hold; raise --store-limit"
                    raise StoreError(said, lasts=True)
                self._discard(row["id"], _names(row))
                self._base.execute("UPDATE jobs SET files = '[]', bytes = 0 WHERE id = ?", (row["id"],))
                self.bytes -= row["bytes"]  # as they were counted: people may have removed some

    def input(self, job: Job, index: int) -> Path | None:
        """Return the file of a picture that went into a job, None where there is none, or none any more."""
        file = self._inputs / job.id / str(index)
        return file if 0 <= index < job.inputs and file.is_file() else None

    def _input_bytes(self, job: str) -> int:
        """Return the size of the pictures that went into a job."""
        try:
            return sum(file.stat().st_size for file in (self._inputs / job).iterdir())
        except OSError:
            return 0

    def done_with_inputs(self, job: Job) -> None:
        """Count the pictures that went into a job that has ended among those that are kept: it may be asked again."""
        self._waiting.pop(job.id, None)
        if job.inputs:
            with self._room:
                self.bytes += self._input_bytes(job.id)

    def _sweep(self) -> None:
        """Remove what an end in the middle of writing left; never what has no name of ours."""
        with _stored(self.folder):
            rows = self._base.execute("SELECT files FROM jobs WHERE files != '[]'").fetchall()
            known = {name for row in rows for name in _names(row)}
            for file in self._pictures.iterdir():
                if file.name not in known and _PICTURE.fullmatch(file.name):
                    file.unlink(missing_ok=True)
            waiting = {job.id for job in self.unfinished()}
            rows = self._base.execute("SELECT id FROM jobs WHERE inputs > 0 AND bytes > 0").fetchall()
            kept = {row["id"] for row in rows}
            for folder in self._inputs.iterdir():
                if folder.name in waiting:
                    self._waiting[folder.name] = self._input_bytes(folder.name)
                elif folder.name not in kept and _JOB.fullmatch(folder.name):
                    shutil.rmtree(folder, ignore_errors=True)
            self._prune()

    def _prune(self) -> None:
        """Forget the oldest jobs without pictures, where there are more than are remembered."""
        self._base.execute(
            "DELETE FROM jobs WHERE ended IS NOT NULL AND bytes = 0 AND created < "
            "(SELECT created FROM jobs ORDER BY created DESC LIMIT 1 OFFSET ?)",
            (_MOST_JOBS,),
        )
        while self._base_bytes() > _MOST_BASE:
            forgotten = self._base.execute(
                "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE ended IS NOT NULL AND bytes = 0 "
                "ORDER BY created LIMIT 1 + (SELECT count(*) FROM jobs) / 10)"
            )
            if not forgotten.rowcount:
                return

    def _base_bytes(self) -> int:
        """Return what the data base needs of its file."""
        names = ("page_count", "freelist_count", "page_size")
        count, free, size = (self._base.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        return int((count - free) * size)
