"""What is told while it runs."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print at once, on standard error, which a worker may use too."""
    print(text, file=sys.stderr, flush=True)
