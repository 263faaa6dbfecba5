"""Who hears how far a call is: the caller's own function, or a bar on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from .options import Progress


def _is_terminal(stream: Any) -> bool:
    """Tell whether a stream, which may be closed, is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


@contextlib.contextmanager
def progress(wanted: bool | Progress | None, label: str) -> Iterator[Progress | None]:
    """Yield the callback for a run: the caller's, a tqdm bar on a terminal, or none."""
    if callable(wanted):
        yield wanted
        return
    # There is none in a process without a console, and a program may have put anything in its place.
    if wanted is False or sys.stderr is None or (wanted is None and not _is_terminal(sys.stderr)):
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=label, leave=False, unit="step", file=sys.stderr) as bar:

        def advance(step: int, steps: int, seconds: float) -> None:
            # Each image, and each tiled decoding, counts from zero again.
            if steps != bar.total or step < bar.n:
                bar.reset(steps)
            bar.update(step - bar.n)

        yield advance
