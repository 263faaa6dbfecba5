"""``sdcpp pull``: a model from a hub, before it is needed."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from .. import hub
from ..model_files import show_path
from .drawing import Verbose, start_logging
from .output import echo


def command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="OWNER/REPO[:FILE]...",
            help="Models of repositories of Hugging Face; @REVISION behind a repository is a branch, tag or commit.",
        ),
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="NAME", help="Branch, tag or commit (default: main).")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only look for them in the cache.")] = False,
    verbose: Verbose = False,
) -> None:
    """Fetch models into the hub's cache, and print their paths."""
    start_logging(verbose)
    found = [hub.parse(name) for name in names]
    for name in found:
        name = dataclasses.replace(name, revision=name.revision or revision)
        echo(show_path(hub.fetch(name, offline=offline)))
