"""What commands write: results to standard output, reports to files."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import OutputError
from ..images import check_writable, write_whole
from ..model_files import show_path
from ..progress import beside_bars


def echo(text: str) -> None:
    """Print a result.

    Raises:
        BrokenPipeError: nobody reads it any more.
        OutputError: standard output cannot be written.
    """
    try:
        with beside_bars():
            typer.echo(text)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise OutputError(f"standard output cannot be written ({error.strerror})") from None
    except UnicodeEncodeError:
        typer.echo(text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding))


def check_apart(file: Path, shown: str, results: Sequence[Path]) -> None:
    """Raise OutputError for a file that is one of the results'; *shown* is what messages call it."""
    if os.path.realpath(file) in [os.path.realpath(each) for each in results]:
        raise OutputError(f"{shown} is what -o writes; choose another name")


def check_report(report: Path | None, results: list[Path]) -> None:
    """Raise OutputError unless the report can be written, beside the results."""
    if report is None:
        return
    shown = f"--report {show_path(report)}"
    check_apart(report, shown, results)
    check_writable(report, shown)


def write_report(report: Path, content: dict[str, Any]) -> None:
    """Write a report, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(report, f"--report {show_path(report)}", lambda part: part.write_text(text, encoding="utf-8"))
