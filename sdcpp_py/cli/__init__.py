"""The ``sdcpp`` command: the API's words on a command line."""

from __future__ import annotations

from .main import app, main, run

__all__ = ["app", "main", "run"]
