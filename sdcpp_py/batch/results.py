"""The folder of a batch: its pictures, and an index of them that says what need not be drawn again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import ArgumentError, BackendError, OutputError
from ..images import check_writable, failure_reason, write_whole
from ..model_files import show_path
from ..server.jobs import Job, StoreError
from ..server.store import open_locked
from .lines import Item

INDEX = "index.jsonl"
_TABLE = ".parquet"

Row = dict[str, Any]


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
            self.rows = self._read()
            self._rewrite()
            self._file: TextIO = opened.enter_context(self.index.open("a", encoding="utf-8"))
            self._opened = opened.pop_all()

    def _read(self) -> dict[str, Row]:
        """Return the rows that are there, by key; what an end in the middle of writing left of a last one is none."""
        rows: dict[str, Row] = {}
        try:
            lines = self.index.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise OutputError(f"index {show_path(self.index)} cannot be read ({failure_reason(error)})") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                key = row["key"]
            except (ValueError, KeyError, TypeError):
                if number == len(lines):
                    continue
                said = (
                    f"index {show_path(self.index)}:{number} is no row of a batch; choose another --output or --index"
                )
                raise ArgumentError(said) from None
            rows.pop(key, None)
            rows[key] = row
        return rows

    # --- what is there ------------------------------------------------------------------------------------------------

    def is_done(self, item: Item) -> bool:
        """Tell whether a picture was drawn and is there still, as long as it was."""
        row = self.rows.get(item.key)
        if row is None or row.get("state") != "done":
            return False
        try:
            return os.path.getsize(self.folder / row["file"]) == int(row["bytes"])
        except OSError:
            return False

    def expect(self, items: Iterable[Item]) -> list[Item]:
        """Return those of some pictures that are to be drawn; files of the others are left alone."""
        items = list(items)
        kept = {self.rows[each.key]["file"] for each in items if self.is_done(each)}
        todo = [each for each in items if not self.is_done(each)]
        stems = {os.path.splitext(file)[0].casefold() for file in kept}
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
            self.failure = self.failure or StoreError(str(error))
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
        self.rows.pop(item.key, None)
        self.rows[item.key] = row
        try:
            self._file.write(_text(row))
            self._file.flush()
        except OSError as error:
            self.failure = StoreError(f"index {show_path(self.index)} cannot be written ({failure_reason(error)})")
            raise self.failure from None

    # --- the end ------------------------------------------------------------------------------------------------------

    def _rewrite(self) -> None:
        """Write the index anew: a row for each picture, in the order of the lines."""
        rows = sorted(self.rows.values(), key=lambda row: (row["line"], row["picture"]))
        if not rows and not self.index.exists():
            return
        text = "".join(map(_text, rows))
        write_whole(self.index, f"index {show_path(self.index)}", lambda part: part.write_text(text, encoding="utf-8"))

    def close(self) -> None:
        """Bring the index in order, and make the table of it.

        Raises:
            OutputError: one of them cannot be written.
        """
        with self._opened:
            # Rows whose files others have now are of lines that are no more.
            last = {row["file"]: key for key, row in self.rows.items() if row["file"]}
            self.rows = {key: row for key, row in self.rows.items() if not row["file"] or last[row["file"]] == key}
            self._rewrite()
            if self._table is not None:
                write_table(self._table, self.rows.values())


def _row(item: Item, job: Job, folder: Path) -> Row:
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


def _text(row: Mapping[str, Any]) -> str:
    """Return a row as a line."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def _pyarrow() -> Any:
    """Return pyarrow, or raise BackendError."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise BackendError('an index in Parquet needs pyarrow: pip install "sdcpp-py[parquet]"') from None
    return pyarrow


def write_table(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as a Parquet file; what is nested in them is JSON there.

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
    flat = [
        {
            name: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
            for name, value in row.items()
        }
        for row in sorted(rows, key=lambda row: (row["line"], row["picture"]))
    ]
    table = arrow.Table.from_pylist(flat, schema)
    write_whole(file, f"index {show_path(file)}", lambda part: arrow.parquet.write_table(table, part))
