"""The ``sdcpp`` command, for ``python -m``."""

from __future__ import annotations

from . import run

if __name__ == "__main__":
    run()
