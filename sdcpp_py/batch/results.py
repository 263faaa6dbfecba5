"""The folder of a batch: its pictures, and an index of them that says what need not be drawn again."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..errors import ArgumentError, BackendError, OutputError
from ..images import check_writable, failure_reason, write_whole
from ..model_files import show_path
from ..server.jobs import Job, StoreError
from ..server.store import open_locked
from .lines import Item

INDEX = "index.jsonl"
_TABLE = ".parquet"

_ROWS_AT_ONCE = 1024  # of a table that is written


class Row(NamedTuple):
    """What is kept in memory of a row: where it is in the index, and what says that its picture is there."""

    line: int
    picture: int
    state: str
    file: str | None
    bytes: int | None
    offset: int


class Results:
    """What keeps the jobs of a batch: the keeper of their scheduler.

    A row is added to the index when its picture has its place, so that after any end each row's picture is whole. Of a
    picture that has been drawn twice the later row counts.

    Args:
        folder: where; it is made.
        index: the file of the index; None for ``index.jsonl`` there. Of a Parquet file that one has the rows until the
            end, when the table is made of them.

    Raises:
        OutputError: it cannot be written.
        ArgumentError: another batch uses the folder, or the index is of another kind.
        BackendError: pyarrow is missing.
    """

    def __init__(self, folder: Path, index: Path | None = None) -> None:
        self.folder = folder
        self.failure: StoreError | None = None
        """Why nothing more can be written; None while that is possible."""
        self._table = index if index is not None and index.suffix.lower() == _TABLE else None
        if index is not None and self._table is None and index.suffix.lower() not in (".jsonl", ".ndjson"):
            raise ArgumentError(f"index {show_path(index)} must be a .jsonl or {_TABLE} file")
        if self._table is not None:
            _pyarrow()
        self.index = folder / INDEX if index is None or self._table is not None else index
        self._items: dict[str, Item] = {}
        self._inputs: dict[str, Sequence[bytes]] = {}
        self._names: dict[str, str] = {}
        with contextlib.ExitStack() as opened:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                used = f"{show_path(folder)} is in use by another batch; choose another --output"
                opened.enter_context(open_locked(folder / ".lock", used))
            except OSError as error:
                said = f"--output {show_path(folder)} cannot be used ({failure_reason(error)}); choose another folder"
                raise OutputError(said) from None
            for file in filter(None, (self.index, self._table)):
                check_writable(file, f"index {show_path(file)}")
            self._rows = _owners(self._read())
            self._end = 0
            self._rewrite()
            # Without a buffer: what a full disk did not take would be tried again when it is closed.
            self._file: IO[bytes] = opened.enter_context(self.index.open("ab", buffering=0))
            self._opened = opened.pop_all()

    def _read(self) -> dict[str, Row]:
        """Return the rows that are there, by key; what an end in the middle of writing left of a last one is none."""
        rows: dict[str, Row] = {}
        offset = 0
        try:
            with self.index.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        if line.strip():
                            key, row = _known(json.loads(line), offset)
                            rows[key] = row
                    except (ValueError, KeyError, TypeError):
                        if line.endswith(b"\n"):
                            where = f"index {show_path(self.index)}:{number}"
                            said = f"{where} is no row of a batch; choose another --output or --index"
                            raise ArgumentError(said) from None
                    offset += len(line)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise OutputError(f"index {show_path(self.index)} cannot be read ({failure_reason(error)})") from None
        return rows

    # --- what is there ------------------------------------------------------------------------------------------------

    def is_done(self, item: Item) -> bool:
        """Tell whether a picture was drawn and is there still, as long as it was."""
        row = self._rows.get(item.key)
        if row is None or row.state != "done" or row.file is None:
            return False
        try:
            return os.path.getsize(self.folder / row.file) == row.bytes
        except OSError:
            return False

    def expect(self, items: Iterable[Item]) -> list[Item]:
        """Return those of some pictures that are to be drawn; files of the others are left alone."""
        items = list(items)
        todo = [each for each in items if not self.is_done(each)]
        keys = {each.key for each in items} - {each.key for each in todo}
        stems = {os.path.splitext(self._rows[key].file or "")[0].casefold() for key in keys}
        for item in todo:
            # A line that is in the place of another one now: what that one drew is still asked for.
            self._names[item.key] = f"{item.name}-{item.key[:8]}" if item.name.casefold() in stems else item.name
        return todo

    def begin(self, job: str, item: Item) -> None:
        """Note which picture a job draws."""
        self._items[job] = item

    # --- the scheduler's keeper ---------------------------------------------------------------------------------------

    def unfinished(self) -> list[Job]:
        """Return no job: lines are read anew."""
        return []

    def get(self, job: str) -> Job | None:
        """Return no job."""
        return None

    def by_key(self, client: str, key: str) -> Job | None:
        """Return no job."""
        return None

    def add(self, job: Job, pictures: Sequence[bytes]) -> None:
        """Keep the pictures that go into a job until it has ended."""
        self._inputs[job.id] = pictures

    def inputs(self, job: Job) -> list[bytes]:
        """Return them."""
        return list(self._inputs[job.id])

    def done_with_inputs(self, job: Job) -> None:
        """Let them go."""
        self._inputs.pop(job.id, None)

    def remove(self, job: Job) -> None:
        """Forget nothing: the index has it."""

    def write_pictures(self, job: Job, files: Sequence[bytes], suffix: str) -> list[str]:
        """Write a job's picture, whole or not at all; return its name. Safe from any thread.

        Raises:
            StoreError: it cannot be written.
        """
        item = self._items[job.id]
        name = f"{self._names[item.key]}.{suffix}"
        shown = show_path(self.folder / name)
        try:
            write_whole(self.folder / name, shown, lambda part: part.write_bytes(files[0]))
        except OutputError as error:
            self.failure = self.failure or StoreError(str(error), lasts=True)
            raise self.failure from None
        return [name]

    def update(self, job: Job) -> None:
        """Add the row of a job that is done or failed.

        Raises:
            StoreError: it cannot be written.
        """
        if job.state not in ("done", "failed"):
            return
        if self.failure is not None:  # what is there of the last row may be cut off
            raise self.failure
        item = self._items.pop(job.id)
        row = _row(item, job, self.folder)
        data = _text(row)
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.failure = StoreError(f"index {show_path(self.index)} cannot be written ({failure_reason(error)})")
            raise self.failure from None
        _, self._rows[item.key] = _known(row, self._end)
        self._end += len(data)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _rewrite(self) -> None:
        """Write the index anew: a row for each picture, in the order of the lines."""
        if not self._rows and not self.index.exists():
            return
        moved: dict[str, Row] = {}

        def copy(part: Path) -> None:
            with self.index.open("rb") as before, part.open("wb") as after:
                for key, row in sorted(self._rows.items(), key=lambda each: each[1][:2]):
                    before.seek(row.offset)
                    moved[key] = row._replace(offset=after.tell())
                    after.write(before.readline().rstrip(b"\n") + b"\n")
                self._end = after.tell()

        write_whole(self.index, f"index {show_path(self.index)}", copy)
        self._rows = moved

    def close(self) -> None:
        """Bring the index in order, and make the table of it.

        Raises:
            OutputError: one of them cannot be written.
        """
        with self._opened:
            self._rows = _owners(self._rows)
            self._rewrite()
            if self._table is not None:
                write_table(self._table, self.index)


def _owners(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Return the rows whose files are theirs: of several with one file the last one, for the others' lines are gone."""
    last = {row.file: row.offset for row in sorted(rows.values(), key=lambda row: row.offset)}
    return {key: row for key, row in rows.items() if row.file is None or last[row.file] == row.offset}


def _known(row: Mapping[str, Any], offset: int) -> tuple[str, Row]:
    """Return the key of a row of the index, and what is kept of it in memory."""
    key, file, size = row["key"], row["file"], row["bytes"]
    return str(key), Row(int(row["line"]), int(row["picture"]), str(row["state"]), file, size, offset)


def _row(item: Item, job: Job, folder: Path) -> dict[str, Any]:
    """Return what the index says of a picture."""
    result = job.result or {}
    file = job.files[0] if job.files else None
    size = result.get("size") or [None, None]
    return {
        "key": item.key,
        "line": item.line,
        "picture": item.picture,
        "state": job.state,
        "file": file,
        "bytes": None if file is None else os.path.getsize(folder / file),
        "mode": item.mode,
        "model": item.model,
        "prompt": item.options.get("prompt"),
        "seed": next(iter(result.get("seeds", [])), None),
        "width": size[0],
        "height": size[1],
        "seconds": None if job.started is None or job.ended is None else round(job.ended - job.started, 3),
        "worker": job.worker,
        "attempts": job.attempts,
        "warnings": job.warnings,
        "parameters": result.get("parameters", {}),
        "error": None if job.error is None else {name: job.error[name] for name in ("type", "message")},
    }


def _text(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line; what UTF-8 has no form for is escaped, as JSON has it."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _pyarrow() -> Any:
    """Return pyarrow, or raise BackendError."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise BackendError('an index in Parquet needs pyarrow: pip install "sdcpp-py[parquet]"') from None
    return pyarrow


def write_table(file: Path, index: Path) -> None:
    """Write the rows of an index as a Parquet file; what is nested in them is JSON there.

    Raises:
        OutputError: it cannot be written.
        BackendError: pyarrow is missing.
    """
    arrow = _pyarrow()
    numbers = {name: arrow.int64() for name in ("line", "picture", "bytes", "seed", "width", "height", "attempts")}
    columns = ("key", "line", "picture", "state", "file", "bytes", "mode", "model", "prompt", "seed", "width", "height",
               "seconds", "worker", "attempts", "warnings", "parameters", "error")  # fmt: skip
    schema = arrow.schema(
        [(name, numbers.get(name, arrow.float64() if name == "seconds" else arrow.string())) for name in columns]
    )

    def flat(line: bytes) -> dict[str, Any]:
        return {
            name: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
            for name, value in json.loads(line).items()
        }

    def write(part: Path) -> None:
        with index.open("rb") as lines, arrow.parquet.ParquetWriter(part, schema) as table:
            while rows := [flat(line) for line in itertools.islice(lines, _ROWS_AT_ONCE)]:
                table.write_table(arrow.Table.from_pylist(rows, schema))

    write_whole(file, f"index {show_path(file)}", write)
