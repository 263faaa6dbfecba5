"""``sdcpp convert``: a model's files as one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import convert as converting
from ..modes import CONVERT
from .drawing import Verbose, start_logging
from .flags import Flag, flags, options_of, take_flags
from .output import check_report, echo, write_report

_FLAGS = flags(CONVERT.declared)


def _convert(
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write what became of each tensor as JSON.", rich_help_panel="Output"),
    ] = None,
    verbose: Verbose = False,
    *,
    given: Mapping[Flag, Any],
) -> None:
    """Convert a model's files to another type or format."""
    start_logging(verbose)
    options = options_of(dict(given), CONVERT.declared)
    check_report(report, [Path(options["target"])])
    done = converting(**options)
    if report is not None:
        write_report(report, done.to_dict())
    echo(f"{done.target}\n{done}")


command: Callable[..., None] = take_flags(_convert, _FLAGS)
