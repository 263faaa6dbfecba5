"""The ``sdcpp`` command: the API's words on a command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .._command import end_on_signals

__all__ = ["main", "run"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    0, 1 for an error with one line, 2 for usage, 130 for Ctrl-C, 143 for SIGTERM.
    """
    from .commands import main as command

    return command(arguments)


def run() -> None:
    """Run the command for the console script."""
    end_on_signals()
    status = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            # Nobody reads it, or its disk is full; else the interpreter would try again, and say so.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            status = status or 1
    sys.exit(status)
