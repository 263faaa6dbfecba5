"""What belongs to the process of the command alone: how it ends on Ctrl-C, from its first moment to its last.

Other programs that import the package are not touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_unfinished: set[Path] = set()


def _is_command() -> bool:
    """Tell whether this process is the command: the script ``sdcpp``, or ``python -m`` with this package's name."""
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    if name != "-m":
        return name in ("sdcpp", "sdcpp.exe")
    after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
    return after[:1] in (["sdcpp_py"], ["sdcpp_py.cli"])


def _end(number: int, frame: object) -> None:
    """End the process, at once and in whatever it is doing: nothing of it outlives it but its files."""
    discard_unfinished()
    with contextlib.suppress(OSError):
        line = "\n" if os.isatty(2) else ""  # below a bar of progress
        os.write(2, f"{line}sdcpp: {_WORDS[signal.Signals(number).name]}\n".encode())
    os._exit(128 + number)


def end_on_signals() -> None:
    """End on Ctrl-C and its like with one word and no half-written file, but for signals that are ignored already."""
    for name in _WORDS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)


def discard_unfinished() -> None:
    """Remove the files that are not written to their end."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Name a file that is removed unless it was moved to its place: at the end, and when a signal ends the process."""
    _unfinished.add(path)
    try:
        yield path
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            _unfinished.discard(path)


# Where the package is imported to be the command: the rest of it takes a while to import.
if _is_command():
    end_on_signals()
